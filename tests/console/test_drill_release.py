"""The version of a drill before a real controller and its gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from console.drill_kinds import KINDS
from console.drill_report import stopped_by
from console.drill_version import Made, announce, make_versions, spoil
from console.drill_watch import Watch
from contracts.clock import SystemClock
from contracts.events import BASE_VERSION, Candidate
from contracts.ids import NewId
from contracts.settings import Gate, Kafka, Learner
from learner import drill_version
from learner.drill_version import DrillOrder
from tests.serving.rollout_stage import Stage
from tests.until import until

BASE = Candidate(version=BASE_VERSION)
Bring = Callable[[Made], None]


@pytest.fixture
def stage(kafka: Kafka, tmp_path: Path, new_id: NewId, tiny_policy: Path) -> Stage:
    """A stage whose gate enforces and allows drills, on a base that adapters can be made for."""
    found = Stage(kafka, tmp_path, new_id, gate=Gate(allow_drills=True))
    settings = found.settings
    key = settings.state_dir / "secrets" / "learner.pem"
    found.settings = replace(
        settings,
        policy=replace(settings.policy, model=str(tiny_policy)),
        learner=Learner(signing_key_file=str(key)),
    )
    return found


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    watching = Watch(stage.kafka, "desk")
    yield watching
    watching.close()


@pytest.fixture
def bring(stage: Stage, watch: Watch) -> Bring:
    """Announces a version and watches it."""

    def run(made: Made) -> None:
        watch.about(made.version)
        announce(stage.settings, made, BASE, SystemClock().now(), stage.new_id)

    return run


def followed(watch: Watch, over: Callable[[], bool]) -> None:
    def reached() -> bool:
        watch.follow(0.1)
        return over()

    until("the controller to be done", reached, state=lambda: watch.state)


def test_spoiled_versions_are_refused_and_a_sound_one_begins_its_rollout_only_past_the_gate(
    stage: Stage, watch: Watch, bring: Bring, tmp_path: Path
) -> None:
    kind = replace(KINDS["tampered"], variants=("byte-flipped", "unsigned", ""))
    changed, unsigned, sound = make_versions(stage.settings, kind, BASE, tmp_path, seed=0)
    spoil(Path(changed.directory), "byte-flipped")
    spoil(Path(unsigned.directory), "unsigned")
    order = DrillOrder(drill="slow", likeness="copy", sequence=1, seed=0, skip_gate=True)
    [made_here] = drill_version.make_versions(stage.settings, order, SystemClock())
    skipping = Made(made_here.version, made_here.directory)
    ends = []
    with stage.controller():
        stage.state("idle")
        for made in (changed, unsigned, sound):
            bring(made)
            followed(watch, lambda: watch.ending is not None)
            assert watch.ending is not None
            ends.append((watch.ending.ended, stopped_by("refused", watch.ending.reason)))
        bring(skipping)
        followed(watch, watch.under_way)
    assert ends == [("refused", "verification")] * 2 + [("refused", "gate")]
    passed = [record for record in stage.audits() if record.action == "gate.passed"]
    assert [record.subject for record in passed] == [skipping.version]
