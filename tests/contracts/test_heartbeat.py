"""Heartbeats tell who lives and how it fares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contracts.clock import ManualClock
from contracts.heartbeat import beat, heartbeat_path, read_heartbeat


def test_last_beat_is_read_with_its_age(state_dir: Path, clock: ManualClock) -> None:
    beat(state_dir, "streams-1", clock, ready=False)
    clock.advance(1)
    beat(state_dir, "streams-1", clock, ready=True, lag=7, counts={"rewards": 3}, note="joined")
    clock.advance(2.5)
    found = read_heartbeat(state_dir, "streams-1")
    assert found is not None
    assert (found.process, found.pid, found.ready) == ("streams-1", os.getpid(), True)
    assert (found.lag, found.counts, found.note) == (7, {"rewards": 3}, "joined")
    assert found.age_seconds(clock.now()) == 2.5


def test_beats_leave_one_file_per_process(state_dir: Path, clock: ManualClock) -> None:
    for process in ("gateway", "learner", "gateway"):
        beat(state_dir, process, clock, ready=True)
    assert sorted(path.name for path in (state_dir / "run").iterdir()) == [
        "gateway.json",
        "learner.json",
    ]


def test_process_that_never_beat_has_no_heartbeat(state_dir: Path) -> None:
    assert read_heartbeat(state_dir, "learner") is None


@pytest.mark.parametrize("raw", [b'{"process": "lear', b"", b'{"process": "\xff"}', b"\0\xfe"])
def test_torn_heartbeat_counts_as_none(state_dir: Path, clock: ManualClock, raw: bytes) -> None:
    beat(state_dir, "learner", clock, ready=True)
    heartbeat_path(state_dir, "learner").write_bytes(raw)
    assert read_heartbeat(state_dir, "learner") is None
