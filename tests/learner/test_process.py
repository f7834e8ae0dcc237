"""The real process against the real broker: killed, stopped, and left without a broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from console.local_broker import LocalBroker
from contracts.broker import create_topics, events_to_end
from contracts.codec import trace_headers
from contracts.events import Release
from contracts.heartbeat import Heartbeat, read_heartbeat
from contracts.manifest import verify_signed
from contracts.settings import Kafka, Segment, Settings, to_environment
from contracts.signing import trusted_keys
from contracts.topics import RELEASES
from tests.topic_log import events
from tests.until import until

ROOT = Path(__file__).parents[2]
SECONDS = 120.0
SendSamples = Callable[[Kafka, int, int], None]


@pytest.fixture
def start(
    settings: Settings, tmp_path: Path
) -> Iterator[Callable[[Kafka], subprocess.Popen[bytes]]]:
    """Start learners that end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def make(kafka: Kafka, processes: int = 1, segment: str = "") -> subprocess.Popen[bytes]:
        segments = (Segment(policy=segment, language="de"),) if segment else ()
        engine = msgspec.structs.replace(settings.engine, max_adapters=5)
        mine = msgspec.structs.replace(settings, kafka=kafka, engine=engine, segments=segments)
        environment = {
            **os.environ,
            **to_environment(mine),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        several = ["-m", "torch.distributed.run", "--standalone"]
        several += ["--nproc-per-node", str(processes)]
        chosen = ["--policy", segment] if segment else []
        with (tmp_path / "learner.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *(several if processes > 1 else ()), "-m", "learner", *chosen],
                env=environment,
                cwd=tmp_path,
                stdout=log,
                stderr=log,
            )
        started.append(process)
        return process

    yield make
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def _beat(
    settings: Settings,
    what: str,
    condition: Callable[[Heartbeat], bool],
    process: str = "learner",
) -> Heartbeat:
    """Wait for a heartbeat of the learner that meets the condition."""

    def found() -> Heartbeat | None:
        beat = read_heartbeat(settings.state_dir, process)
        return beat if beat is not None and condition(beat) else None

    log = settings.state_dir.parent / "learner.log"
    return until(what, found, SECONDS, state=lambda: log.read_text()[-2000:])


def test_a_killed_learner_goes_on_where_it_was_and_ends_cleanly_on_sigterm(
    settings: Settings,
    kafka: Kafka,
    send_samples: SendSamples,
    start: Callable[[Kafka], subprocess.Popen[bytes]],
) -> None:
    send_samples(kafka, 0, 28)
    first = start(kafka)
    _beat(settings, "three batches", lambda s: s.counts.get("batches", 0) >= 3)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    send_samples(kafka, 20, 48)
    second = start(kafka)
    state = _beat(
        settings,
        "six batches after the kill",
        lambda s: s.pid == second.pid and s.counts.get("batches", 0) >= 6 and s.lag == 0,
    )
    assert state.ready
    second.send_signal(signal.SIGTERM)
    assert second.wait(SECONDS) == 0

    releases = events(kafka, RELEASES, Release)
    manifests = {
        r.version: verify_signed(Path(r.location), r.version, trusted_keys(settings))
        for r in releases
    }
    assert len(manifests) == 3
    ids = [
        json.loads(line)["sample_id"]
        for release in {r.version: r for r in releases}.values()
        for line in (Path(release.location) / "ledger.jsonl").read_text().splitlines()
    ]
    assert len(ids) == len(set(ids)) == 48

    spans = [
        json.loads(line)
        for line in (settings.state_dir / "spans" / "learner.jsonl").read_text().splitlines()
    ]
    learned = {s["context"]["trace_id"] for s in spans if s["name"] == "learn"}
    assert f"0x{48:032x}" in learned  # the trace of the last sample ends in the learner
    batches = [s for s in spans if s["name"] == "learn batch"]
    assert {len(s["links"]) for s in batches} == {8}  # those of the killed one are lost


def test_the_learner_of_a_segment_beats_under_its_own_name(
    settings: Settings, kafka: Kafka, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = start(kafka, segment="german")

    beat = _beat(settings, "a ready segment", lambda s: s.ready, "learner.german")

    assert beat.pid == process.pid
    assert read_heartbeat(settings.state_dir, "learner") is None


def test_a_broker_that_comes_back_is_found_again(
    settings: Settings,
    tmp_path: Path,
    send_samples: SendSamples,
    start: Callable[[Kafka], subprocess.Popen[bytes]],
) -> None:
    with LocalBroker(tmp_path / "own-broker") as own:
        create_topics(own.kafka)
        send_samples(own.kafka, 0, 8)
        process = start(own.kafka)
        _beat(settings, "one batch", lambda s: s.counts.get("batches") == 1)
        own.stop()
        own.start()
        send_samples(own.kafka, 8, 16)
        _beat(settings, "a release after the restart", lambda s: s.counts.get("releases") == 1)

        assert process.poll() is None
        ((record, _),) = events_to_end(own.kafka, (RELEASES,), "test-trace")
        assert trace_headers(record.headers)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_processes_of_torchrun_learn_and_end_as_one(
    settings: Settings,
    tmp_path: Path,
    kafka: Kafka,
    send_samples: SendSamples,
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    send_samples(kafka, 0, 16)
    agent = start(kafka, 2)
    _beat(settings, "a release", lambda s: s.counts.get("releases") == 1)
    agent.send_signal(signal.SIGTERM)
    agent.wait(SECONDS)

    [release] = events(kafka, RELEASES, Release)
    manifest = verify_signed(Path(release.location), release.version, trusted_keys(settings))
    assert manifest.config["processes"] == 2
    said = (tmp_path / "learner.log").read_text()
    assert said.count("batch 2: offsets 8 to 15, 8 of 8 used") == 1
    assert "process 1 of 2 ends with the first" in said
