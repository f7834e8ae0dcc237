"""An adapter makes room for the next only when none of its answers is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
from msgspec.structs import replace

from contracts.clock import ManualClock
from contracts.errors import ManifestError, UnavailableError
from contracts.events import Candidate
from contracts.settings import Segment
from serving.rollout_adapters import LATE_SECONDS, Adapters
from tests.serving.rollout_stage import Stage
from tests.stream_events import NOON

NewCandidate = Callable[[], Candidate]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


@pytest.fixture
def adapters(stage: Stage, clock: ManualClock) -> Iterator[Adapters]:
    engine = replace(stage.settings.engine, max_adapters=3, timeout_seconds=300.0)
    found = Adapters(stage.engine, replace(stage.settings, engine=engine), clock, Event())
    yield found
    found.close()


@pytest.fixture
def new(stage: Stage) -> NewCandidate:
    def candidate() -> Candidate:
        path, version = stage.version()
        return Candidate(version=version, sequence=1, location=str(path))

    return candidate


def test_the_longest_idle_adapter_leaves_once_gateways_have_heard(
    stage: Stage, adapters: Adapters, clock: ManualClock, new: NewCandidate
) -> None:
    first, stable, third, fourth = new(), new(), new(), new()
    for candidate in (first, stable, third):
        adapters.admit(candidate, (stable,))
    with pytest.raises(UnavailableError, match=f"waiting 10 s until {first.version[:12]}"):
        adapters.admit(fourth, (stable,))
    clock.advance(LATE_SECONDS)
    adapters.admit(fourth, (stable,))
    assert set(stage.engine.adapters) == {stable.version, third.version, fourth.version}


def test_an_adapter_with_an_answer_under_way_stays(
    stage: Stage, adapters: Adapters, clock: ManualClock, new: NewCandidate
) -> None:
    first, stable, third, fourth = new(), new(), new(), new()
    for candidate in (first, stable, third):
        adapters.admit(candidate, (stable,))
    with pytest.raises(UnavailableError):
        adapters.admit(fourth, (stable,))
    clock.advance(1000.0)
    stage.engine.under_way = {first.version: 1}
    with pytest.raises(UnavailableError, match="under way"):
        adapters.admit(fourth, (stable,))
    assert first.version in stage.engine.adapters
    stage.engine.under_way = {}
    adapters.admit(fourth, (stable,))
    assert first.version not in stage.engine.adapters


def test_an_engine_without_a_door_is_given_the_longest_answers_time(
    stage: Stage, adapters: Adapters, clock: ManualClock, new: NewCandidate
) -> None:
    stage.engine.under_way = None
    first, stable, third, fourth = new(), new(), new(), new()
    for candidate in (first, stable, third):
        adapters.admit(candidate, (stable,))
    clock.advance(LATE_SECONDS)
    with pytest.raises(UnavailableError, match="waiting 290 s"):
        adapters.admit(fourth, (stable,))
    clock.advance(289.0)
    with pytest.raises(UnavailableError, match="waiting 1 s"):
        adapters.admit(fourth, (stable,))
    clock.advance(1.0)
    adapters.admit(fourth, (stable,))


def test_versions_of_another_policy_are_left_to_its_own_controller(
    stage: Stage, adapters: Adapters, clock: ManualClock, new: NewCandidate
) -> None:
    others = stage.versions.parent / "another-policy"
    stage.engine.adapters |= {letter * 64: str(others / (letter * 64)) for letter in "abc"}
    adapters.ensure(())
    clock.advance(1000.0)
    with pytest.raises(UnavailableError, match="only 0 are ours"):
        adapters.admit(new(), ())
    assert set(stage.engine.adapters) == {letter * 64 for letter in "abc"}


def test_adapters_of_others_are_left_alone(
    stage: Stage, adapters: Adapters, new: NewCandidate, tmp_path: Path
) -> None:
    stage.engine.adapters |= {name: str(tmp_path) for name in ("mine", "yours", "theirs")}
    with pytest.raises(UnavailableError, match="only 0 are ours"):
        adapters.admit(new(), ())


def test_full_weights_take_the_place_of_all_and_an_adapter_takes_theirs(
    stage: Stage, adapters: Adapters, new: NewCandidate
) -> None:
    stable = new()
    adapters.admit(stable, ())
    path, version = stage.version(form="full")
    whole = Candidate(version=version, sequence=2, form="full", location=str(path))
    adapters.admit(whole, (stable,))
    assert stage.engine.full == version
    assert adapters.ensure((whole,)) == []
    stage.engine.restart()
    assert adapters.ensure((whole,)) == [version]
    assert stage.engine.full == version
    assert adapters.ensure((stable,)) == [stable.version]
    assert stage.engine.full == ""
    assert [to.version for to, _ in stage.engine.swaps] == [version, version, ""]


def test_full_weights_are_refused_where_two_policies_share_the_engine(
    stage: Stage, clock: ManualClock
) -> None:
    german = Segment(policy="desk-de", language="de")
    adapters = Adapters(stage.engine, replace(stage.settings, segments=(german,)), clock, Event())
    path, version = stage.version(form="full")
    whole = Candidate(version=version, sequence=1, form="full", location=str(path))
    with pytest.raises(ManifestError, match="desk, desk-de share it"):
        adapters.admit(whole, ())
    assert stage.engine.swaps == []
    adapters.close()


def test_a_version_is_loaded_as_what_its_signed_manifest_says(
    stage: Stage, adapters: Adapters
) -> None:
    path, version = stage.version(form="full")
    with pytest.raises(ManifestError, match="has form 'full', its release 'lora'"):
        adapters.admit(Candidate(version=version, sequence=1, location=str(path)), ())
    assert (stage.engine.full, stage.engine.loads) == ("", [])
