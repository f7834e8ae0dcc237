"""Two corrections to how Faust and aiokafka fetch; see decision 0105.

Both replace a method of one object; a test on real consumers fails when it is no longer there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

PAUSE_SECONDS = 0.02
"""Below the worker's batches of 50 ms; a broker that waits by itself is asked as before."""


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


def rewind_uncommitted(thread: Any) -> None:
    """Make Faust's consumer thread begin partitions without a committed offset at their start.

    After an assignment Faust seeks to the committed offsets; aiokafka leaves a partition that has
    none where it is. What was fetched and dropped while the group rebalanced is then not read.
    """
    seek = thread.seek_to_committed

    async def seek_to_committed() -> Mapping[Any, int | None]:
        committed: Mapping[Any, int | None] = await seek()
        uncommitted = [place for place, offset in committed.items() if not offset]
        if uncommitted:
            await thread.seek_to_beginning(*uncommitted)
        return committed

    thread.seek_to_committed = seek_to_committed
