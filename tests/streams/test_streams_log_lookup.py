"""What was forgotten is read again whole, also from a broker that stands still meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from console.local_broker import LocalBroker
from contracts.broker import create_topics
from contracts.codec import encode
from contracts.topics import DECISIONS
from streams import log_lookup
from streams.log_lookup import ATTEMPTS, LogLookup
from streams.recall import Wanted
from streams.session import Index
from tests.topic_log import write

RECORD_SECONDS = 1.0


async def test_no_record_is_left_out_because_the_broker_stood_still(
    decision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lookup, "RECORD_SECONDS", RECORD_SECONDS)
    with LocalBroker(tmp_path / "broker") as broker:
        create_topics(broker.kafka)
        sent = [encode(DECISIONS, decision(session_id="one"), source="test") for _ in range(3)]
        await asyncio.to_thread(write, broker.kafka, *sent)
        lookup = LogLookup(broker.kafka, "test-lookup")
        partition = await _partition(lookup, len(sent))
        wanted = Wanted("one", partition, Index(), tuple(range(len(sent))))
        assert broker._process is not None
        group = os.getpgid(broker._process.pid)
        consumer: Any = lookup._consumer
        ends = consumer.end_offsets

        async def then_stand_still(places: Any) -> Any:
            found = await ends(places)
            consumer.end_offsets = ends
            os.killpg(group, signal.SIGSTOP)
            seconds = (ATTEMPTS + 1) * RECORD_SECONDS
            asyncio.get_running_loop().call_later(seconds, os.killpg, group, signal.SIGCONT)
            return found

        consumer.end_offsets = then_stand_still
        try:
            found = await asyncio.wait_for(lookup.read(wanted), 60.0)
        finally:
            os.killpg(group, signal.SIGCONT)
            await lookup.close()
        assert [record.offset for record in found] == list(range(len(sent)))


async def _partition(lookup: LogLookup, records: int) -> int:
    """Return the partition of a session by finding its records there."""
    for partition in range(lookup._kafka.partitions):
        if await lookup.read(Wanted("one", partition, Index(), tuple(range(records)))):
            return partition
    raise AssertionError("the session is in no partition")
