"""The streams benchmark gives contestants the same jobs, and its tables read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.streams import table
from benchmarks.streams_field import CONTESTANTS, settings_in
from benchmarks.streams_growth import growth
from benchmarks.streams_growth import table as growth_table
from benchmarks.streams_jobs import Job, ShortJob, WholeJob
from benchmarks.streams_load import interaction
from benchmarks.streams_plumbing import copies, templates
from contracts.broker import Received
from contracts.clock import SystemClock
from contracts.codec import Record, decode
from contracts.events import AuditRecord, Event, Reward, Safety, Sample
from contracts.ids import uuid7_ids
from contracts.settings import Kafka


def taken(job: Job, record: Record, offset: int) -> list[Event]:
    received = Received(record.topic, 0, offset, record.key, record.value, record.headers)
    return [decode(one.topic, one.value, one.headers) for one in job.take(received)]


@pytest.mark.parametrize("kind", [ShortJob, WholeJob])
def test_a_peers_job_rewards_an_interaction_in_either_order(
    kind: type[ShortJob | WholeJob], tmp_path: Path
) -> None:
    job = kind(settings_in(tmp_path, Kafka(), final_signals=("rating",)))
    ids = uuid7_ids(SystemClock())
    for number in range(2):
        pair = interaction(datetime.now(UTC), ids, number)
        first, second = pair if number else reversed(pair)
        assert not any(isinstance(one, Reward | Sample) for one in taken(job, first, number))
        made = taken(job, second, number)
        (reward,) = (one for one in made if isinstance(one, Reward))
        (sample,) = (one for one in made if isinstance(one, Sample))
        assert reward.value == sample.reward == (1.0 if number % 3 else -1.0)
    job.flush()
    assert not job.wants_flush()


def test_the_whole_job_sends_what_our_worker_sends(tmp_path: Path) -> None:
    ours = templates(settings_in(tmp_path, Kafka()))
    wanted = [decode(o.topic, o.value, o.headers) for made in ours.values() for o in made]
    job = WholeJob(settings_in(tmp_path, Kafka(), final_signals=("rating",)))
    pair = interaction(datetime.now(UTC), uuid7_ids(SystemClock()), 0)
    found = [event for record in pair for event in taken(job, record, 0)]
    assert [type(event) for event in found] == [type(event) for event in wanted]


def test_a_copy_is_as_large_as_what_our_worker_sends(tmp_path: Path) -> None:
    found = templates(settings_in(tmp_path, Kafka()))
    kinds = []
    for record in interaction(datetime.now(UTC), uuid7_ids(SystemClock()), 0):
        received = Received(record.topic, 0, 0, record.key, record.value, record.headers)
        made = copies(found, received)
        assert {one.key for one in made} == {record.key}
        kinds += [type(decode(one.topic, one.value, one.headers)) for one in made]
    assert kinds.count(AuditRecord) == 4
    assert {kind: kinds.count(kind) for kind in (Safety, Reward, Sample)} == {
        Safety: 1,
        Reward: 1,
        Sample: 1,
    }


def test_an_interaction_has_about_a_kilobyte() -> None:
    decision, rating = interaction(datetime.now(UTC), uuid7_ids(SystemClock()), 0)
    assert 1000 < len(decision.value) < 1400
    assert len(rating.value) < 500


def test_the_table_compares_each_job_with_ours() -> None:
    ours = {job: f"{job}: Headrace" for job in ("whole", "short", "plumbing")}
    costs = {ours["whole"]: 0.5, ours["short"]: 0.4, ours["plumbing"]: 0.2}
    streams = {
        one.name: {
            "cpu_ms": [costs.get(one.name, 1.0)],
            "per_second": [1000.0],
            "resident_mb": [100.0],
            "idle": [0.03],
            "latency_ms": [{"p50": 10.0, "p99": 20.0, "cores": 0.5}] if one.job == "whole" else [],
        }
        for one in CONTESTANTS
    }
    rows = table({"streams": streams, "options": {"rate": 500.0}}).splitlines()
    found = rows[2 : 2 + len(CONTESTANTS)]
    ratios = {row.split(" | ")[0][2:]: row.split(" | ")[3] for row in found}
    assert {ratios[name] for name in ours.values()} == {"1.00 [1.00, 1.00]"}
    assert ratios["whole: raw aiokafka"] == "2.00 [2.00, 2.00]"
    assert ratios["short: raw aiokafka"] == "2.50 [2.50, 2.50]"
    assert ratios["plumbing: raw aiokafka"] == "5.00 [5.00, 5.00]"


def test_state_is_as_large_after_more_history(tmp_path: Path) -> None:
    (at,) = growth(10_000, tmp_path, seed=1)
    assert 1000 <= at["open"] <= 1200
    assert at["sessions"] < 1000
    assert at["revisions"] > 0
    assert growth_table([at]).splitlines()[-1].startswith("| 10,000 |")
