"""Waiting for what threads and processes do: until a deadline, for a named reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

POLL_SECONDS = 0.01


def until(
    what: str,
    condition: Callable[[], Found | None],
    seconds: float = 30.0,
    *,
    state: Callable[[], object] = str,
) -> Found:
    """Poll until the condition is true and return its value; fail with ``what`` and ``state()``."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s {state()}"
        time.sleep(POLL_SECONDS)
    return found


async def until_async(
    what: str,
    condition: Callable[[], Found | None],
    seconds: float = 30.0,
    *,
    state: Callable[[], object] = str,
) -> Found:
    """Wait as `until` does, for what other tasks of the running event loop do."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s {state()}"
        await asyncio.sleep(POLL_SECONDS)
    return found
