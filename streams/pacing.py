"""Pauses between empty fetches, for brokers that answer them at once instead of waiting."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

PAUSE_SECONDS = 0.02
"""Far below the worker's batches of 100 ms; a broker that waits by itself is asked as before."""


def pace(fetcher: Any, seconds: float = PAUSE_SECONDS) -> None:
    """Make an aiokafka fetcher wait after a fetch that brought nothing.

    Kafka holds an empty fetch for up to ``fetch_max_wait_ms``. The development broker does not, and
    the fetch loop then keeps a good part of a core busy with the network.
    """
    fetch = fetcher._proc_fetch_request

    async def paced(*arguments: Any) -> bool:
        found: bool = await fetch(*arguments)
        if not found:
            with suppress(asyncio.CancelledError):  # as in the fetch itself: closing goes on
                await asyncio.sleep(seconds)
        return found

    fetcher._proc_fetch_request = paced
