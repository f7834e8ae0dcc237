"""The streams benchmark gives every contestant the same job, and its tables read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from benchmarks.streams import table
from benchmarks.streams_field import CONTESTANTS, OURS, PLUMBING, RAW_PLUMBING, settings_in
from benchmarks.streams_growth import growth
from benchmarks.streams_growth import table as growth_table
from benchmarks.streams_job import Job
from benchmarks.streams_load import interaction
from benchmarks.streams_plumbing import copies, templates
from contracts.broker import Received
from contracts.clock import SystemClock
from contracts.codec import decode
from contracts.events import AuditRecord, Reward, Safety, Sample
from contracts.ids import uuid7_ids
from contracts.settings import Kafka


def test_the_peers_job_rewards_an_interaction_in_either_order(tmp_path: Path) -> None:
    job = Job(settings_in(tmp_path, Kafka()))
    ids = uuid7_ids(SystemClock())
    for number in range(2):
        pair = interaction(datetime.now(UTC), ids, number)
        first, second = pair if number else reversed(pair)
        assert job.take(first.topic, first.value, first.headers) == []
        made = job.take(second.topic, second.value, second.headers)
        reward, sample = (decode(one.topic, one.value, one.headers) for one in made)
        assert isinstance(reward, Reward)
        assert isinstance(sample, Sample)
        assert reward.value == sample.reward == (1.0 if number % 3 else -1.0)
    job.flush()
    assert not job.wants_flush()


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


def test_the_table_compares_jobs_with_ours_and_plumbing_with_our_plumbing() -> None:
    costs = {OURS: 0.5, PLUMBING: 0.2, RAW_PLUMBING: 0.1}
    streams = {
        one.name: {
            "cpu_ms": [costs.get(one.name, 1.0)],
            "per_second": [1000.0],
            "resident_mb": [100.0],
            "idle": [0.03],
            "latency_ms": [{"p50": 10.0, "p99": 20.0, "cores": 0.5}] if one.job else [],
        }
        for one in CONTESTANTS
    }
    rows = table({"streams": streams, "options": {"rate": 500.0}}).splitlines()
    ratios = {row.split(" | ")[0][2:]: row.split(" | ")[3] for row in rows[2:9]}
    assert ratios[OURS] == ratios[PLUMBING] == "1.00 [1.00, 1.00]"
    assert ratios[RAW_PLUMBING] == "0.50 [0.50, 0.50]"
    assert ratios["raw aiokafka loop"] == "2.00 [2.00, 2.00]"


def test_state_is_as_large_after_more_history(tmp_path: Path) -> None:
    (at,) = growth(10_000, tmp_path, seed=1)
    assert at["open"] == 2000
    assert at["sessions"] < 1000
    assert at["revisions"] > 0
    assert growth_table([at]).splitlines()[-1].startswith("| 10,000 |")
