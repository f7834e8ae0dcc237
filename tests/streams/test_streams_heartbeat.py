"""A worker whose heartbeat cannot be written goes on, and beats again when it can."""

from __future__ import annotations

import asyncio

import pytest

from streams import __main__ as process


class FullDisk:
    """A worker that can write its heartbeat the second time."""

    def __init__(self) -> None:
        self.failed = False
        self.went_on = asyncio.Event()

    def beat(self) -> None:
        if not self.failed:
            self.failed = True
            raise OSError(28, "No space left on device")
        self.went_on.set()


async def test_a_heartbeat_that_cannot_be_written_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "BEAT_SECONDS", 0.0)
    worker = FullDisk()
    beating = asyncio.create_task(process._beat(worker))
    await asyncio.wait_for(worker.went_on.wait(), 10.0)
    beating.cancel()
