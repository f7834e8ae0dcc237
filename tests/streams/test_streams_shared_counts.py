"""Two workers count the same entities over other partitions at the same time, in a real store."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from contracts.clock import ManualClock
from contracts.settings import Settings
from feature_store.writer import FeatureWriter
from streams.delivery import FeatureLog
from streams.tally import Fact

ROUNDS = 30
START = ManualClock().now()


def opened(partition: int, offset: int) -> Fact:
    return Fact(
        stage="opened",
        partition=partition,
        offset=offset,
        decision_id=f"d{partition}-{offset}",
        user_id="ann",
        session_id=f"s{partition}",
        policy_version="base",
        action="answer",
        risk=0.0,
        violation=False,
        time=START + timedelta(seconds=offset),
        decided_at=START + timedelta(seconds=offset),
        topic="other",
    )


async def test_counts_of_two_workers_that_write_at_once_are_both_kept(state_dir: Path) -> None:
    settings = Settings(state_dir=state_dir)
    writers = [FeatureWriter(settings, ManualClock(), f"worker-{n}") for n in range(2)]
    logs = [FeatureLog(writer) for writer in writers]
    for number in range(ROUNDS):
        facts = [[opened(partition, number)] for partition in range(len(logs))]
        await asyncio.gather(
            *(log.record(f, shared=True) for log, f in zip(logs, facts, strict=True))
        )
        ((row, _),) = writers[0].latest("user", ["ann"]).values()
        assert row["decisions"] == 2 * (number + 1), row
