"""Releases go through the real broker to promotion or back, and survive restarts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from console.local_broker import LocalBroker
from contracts.audit import broken_links
from contracts.broker import create_topics
from contracts.events import BASE_VERSION
from contracts.heartbeat import read_heartbeat
from contracts.ids import NewId
from contracts.manifest import Manifest, sign_manifest, write_manifest
from contracts.settings import Engine as EngineSettings
from contracts.settings import Kafka
from contracts.signing import signing_key
from contracts.topics import ROLLOUTS
from serving.assignment import assign
from tests.serving.rollout_stage import HALF, RULES, Stage, check_engine
from tests.signing_keys import new_key
from tests.until import until


async def test_the_engine_of_these_tests_does_what_every_engine_must(stage: Stage) -> None:
    await check_engine(stage.engine, stage.version()[0], stage.version()[0])


def test_a_good_release_is_loaded_warmed_up_and_promoted(stage: Stage) -> None:
    with stage.controller() as status:
        assert stage.state("idle").stable.version == BASE_VERSION
        version = stage.released()
        canary = stage.state("canary", version)
        assert canary.candidate is not None
        assert canary.weight == 0.5
        assert version in stage.engine.adapters
        assert stage.engine.asked == [version]
        served = stage.serve(canary, range(80))
        promoted = stage.state("promoted", version)
        until("figures", lambda: status.counts()["promoted"] == 1)
        assert status.counts() == {
            "releases": 1,
            "promoted": 1,
            "rolled_back": 0,
            "refused": 0,
            "canary_requests": promoted.evidence.requests["canary"],
        }
    assert promoted.stable.version == version
    assert (promoted.candidate, promoted.weight, promoted.judged) == (None, 0.0, version)
    assert promoted.evidence.requests["canary"] <= served
    epochs = [state.epoch for state in stage.states()]
    assert epochs == sorted(epochs)
    assert {state.epoch: state.phase for state in stage.states()} == {
        0: "idle",
        1: "canary",
        2: "promoted",
    }


def test_every_step_leaves_an_audit_record_in_the_trace_of_the_release(stage: Stage) -> None:
    with stage.controller():
        version = stage.promote()
    records = stage.audits()
    assert [record.action for record in records] == ["rollout.started", "rollout.promoted"]
    assert {record.subject for record in records} == {version}
    started, promoted = (record.detail for record in records)
    assert started["plan"] == promoted["plan"] == stage.states()[-1].plan
    assert started["gate_mode"] == "off"
    assert promoted["evidence"]["requests"]["canary"] >= HALF.min_canary_requests
    assert broken_links(records) == []


def test_an_unsafe_candidate_is_rolled_back_and_the_stable_version_keeps_serving(
    stage: Stage,
) -> None:
    with stage.controller() as status:
        first = stage.promote()
        second = stage.released()
        canary = stage.state("canary", second)
        stage.serve(canary, range(100, 160), bad_canary=True)
        state = stage.state("rolled-back", second)
        until("figures", lambda: status.counts()["rolled_back"] == 1)
        assert status.counts()["promoted"] == 1
        assert assign(state, "desk", "anyone").policy_version == first
        assert {first, second} <= set(stage.engine.adapters)  # gateways may still ask for it
    assert state.reason.startswith("safety: e-value")
    assert state.evidence.guardrails["safety"].e_value >= 250
    assert (state.stable.version, state.candidate, state.weight) == (first, None, 0.0)


def test_a_new_rollout_has_a_new_salt(stage: Stage) -> None:
    with stage.controller():
        stage.promote()
        second = stage.released()
        stage.state("canary", second)
    salts = {state.salt for state in stage.states() if state.phase == "canary"}
    assert len(salts) == 2


def test_a_version_whose_files_were_changed_is_refused_and_never_loaded(stage: Stage) -> None:
    path, version = stage.version()
    (path / "adapter_model.safetensors").write_bytes(b"other weights")
    with stage.controller() as status:
        stage.release(path, version)
        state = stage.state("refused", version)
        until("figures", lambda: status.counts()["refused"] == 1)
    assert "differ from the manifest" in state.reason
    assert (state.stable.version, state.candidate) == (BASE_VERSION, None)
    assert stage.engine.loads == []
    assert [record.action for record in stage.audits()] == ["rollout.refused"]


def unsigned(stage: Stage, path: Path) -> None:
    (path / "manifest.sig").unlink()


def signed_by_a_stranger(stage: Stage, path: Path) -> None:
    sign_manifest(path, signing_key(new_key(stage.directory / "elsewhere")))


def with_the_signature_of_another(stage: Stage, path: Path) -> None:
    other, _ = stage.version()
    (path / "manifest.sig").write_bytes((other / "manifest.sig").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (unsigned, "unsigned versions are not loaded"),
        (signed_by_a_stranger, "is not trusted"),
        (with_the_signature_of_another, "the signature by key .* is wrong"),
    ],
)
def test_a_version_that_no_trusted_key_signed_is_refused_and_audited(
    stage: Stage, spoil: Callable[[Stage, Path], None], said: str
) -> None:
    path, version = stage.version()
    spoil(stage, path)
    with stage.controller():
        stage.release(path, version)
        state = stage.state("refused", version)
    assert re.search(said, state.reason)
    assert stage.engine.loads == []
    (record,) = stage.audits()
    assert (record.action, record.subject) == ("rollout.refused", version)
    assert re.search(said, record.reason)


def test_a_release_that_names_the_base_model_is_refused_and_audited(stage: Stage) -> None:
    with stage.controller():
        version = stage.promote()
        stage.release(stage.versions, BASE_VERSION)
        refused = stage.state("refused", BASE_VERSION)
        assert (refused.stable.version, refused.candidate) == (version, None)
        assert "nobody signed it" in refused.reason
        stage.state("canary", stage.released())
    assert ("rollout.refused", BASE_VERSION) in {(r.action, r.subject) for r in stage.audits()}


def test_after_a_rotation_versions_of_both_keys_are_loaded_without_a_restart(stage: Stage) -> None:
    path, version = stage.version()
    sign_manifest(path, signing_key(new_key(stage.settings.state_dir, "next")))
    with stage.controller():
        stage.promote()
        path, version = stage.version()
        sign_manifest(path, signing_key(new_key(stage.settings.state_dir, "third")))
        stage.release(path, version)
        stage.state("canary", version)


def no_text(path: Path) -> str:
    (path / "manifest.json").write_bytes(b'{"policy": "\xff\xfe"}')
    return str(path)


def directory_as_manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()
    return str(path)


def link_elsewhere(path: Path) -> str:
    outside = path.parents[3] / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    return str(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: f"{path}\0", "is no path"),
        (lambda path: str(path / ("x" * 5000)), "cannot be read"),
        (lambda path: str(path / "adapter_model.safetensors"), "adapter_model.safetensors"),
        (lambda _: "y" * 400_000, "is not below"),
        (directory_as_manifest, "missing or no file"),
        (no_text, "not a manifest"),
        (link_elsewhere, "is not below"),
        (lambda _: "/etc", "is not below"),
        (lambda path: f"{path}/../../../../..", "is not below"),
        (lambda _: "", "is not below"),
        (lambda path: str(path.parents[1]), "is not below"),
    ],
)
def test_a_bad_location_is_refused_and_the_next_release_is_taken(
    stage: Stage, spoil: Callable[[Path], str], said: str
) -> None:
    path, bad = stage.version()
    with stage.controller():
        stage.release(spoil(path), bad)
        assert said in stage.state("refused", bad).reason
        assert stage.engine.loads == []
        stage.state("canary", stage.released())


def test_a_relative_location_is_handed_to_the_engine_as_a_whole_path(stage: Stage) -> None:
    path, version = stage.version()
    with stage.controller():
        stage.release(os.path.relpath(path), version)
        stage.state("canary", version)
    assert stage.engine.adapters[version] == str(path.resolve())


def test_a_version_of_another_policy_is_refused(stage: Stage) -> None:
    with stage.controller():
        version = stage.release(*stage.version(policy="other"))
        assert "policy 'other'" in stage.state("refused", version).reason


def test_a_version_that_the_engine_cannot_take_is_refused(stage: Stage) -> None:
    path, _ = stage.version()
    (path / "adapter_model.safetensors").unlink()
    manifest = msgspec.json.decode((path / "manifest.json").read_bytes(), type=Manifest)
    version = write_manifest(path, msgspec.structs.replace(manifest, files={}))
    sign_manifest(path, stage.key)
    with stage.controller():
        stage.release(path, version)
        assert "no adapter at" in stage.state("refused", version).reason


def test_of_the_releases_that_wait_only_the_newest_is_taken(stage: Stage) -> None:
    with stage.controller():
        first = stage.released()
        canary = stage.state("canary", first)
        skipped, newest = stage.released(), stage.released()
        stage.release(stage.versions / "version-1", first)  # announced twice, taken once
        stage.serve(canary, range(80))
        stage.state("canary", newest)
    taken = {state.candidate.version for state in stage.states() if state.candidate}
    assert taken == {first, newest}
    superseded = [r for r in stage.audits() if r.action == "release.superseded"]
    assert [(r.subject, r.detail) for r in superseded] == [(skipped, {"by": newest})]


def test_a_release_that_waits_is_not_forgotten_when_the_controller_restarts(stage: Stage) -> None:
    with stage.controller():
        canary = stage.state("canary", stage.released())
        newest = stage.released()
        stage.serve(canary, range(10))
        until("10 are counted", lambda: stage.requests() == 10)
    with stage.controller():
        stage.serve(canary, range(10, 80))
        stage.state("canary", newest)


def test_without_enough_evidence_in_time_the_canary_is_rolled_back(
    kafka: Kafka, tmp_path: Path, new_id: NewId
) -> None:
    hasty = msgspec.structs.replace(HALF, max_wait_seconds=0.5)
    stage = Stage(kafka, tmp_path, new_id, msgspec.structs.replace(RULES, steps=(hasty,)))
    with stage.controller():
        version = stage.released()
        stage.serve(stage.state("canary", version), range(10), rewards=None)
        state = stage.state("rolled-back", version)
    assert {held.held for held in stage.states() if held.phase == "canary"} == {False, True}
    assert "s and as long on hold: " in state.reason
    assert "of 20 canary requests" in state.reason
    assert state.stable.version == BASE_VERSION


def test_a_controller_that_was_away_for_longer_than_step_and_hold_still_holds(stage: Stage) -> None:
    with stage.controller():
        version = stage.released()
        canary = stage.state("canary", version)
    began = canary.time - timedelta(seconds=10 * HALF.max_wait_seconds)
    stage.send(ROLLOUTS, msgspec.structs.replace(stage.states()[-1], step_started_at=began))
    with stage.controller():
        held = until("a hold", lambda: next((s for s in stage.states() if s.held), None))
        assert held.held_at is not None
        assert held.held_at > canary.time
        stage.serve(canary, range(80))
        assert stage.state("promoted", version).held_at is None


def test_rules_that_change_under_way_end_the_rollout(stage: Stage) -> None:
    with stage.controller():
        version = stage.released()
        stage.state("canary", version)
    rules = msgspec.structs.replace(RULES, reward_margin=1.9)
    stage.settings = msgspec.structs.replace(stage.settings, rollout=rules)
    with stage.controller():
        assert "the rules changed" in stage.state("rolled-back", version).reason


def test_an_engine_that_lost_its_adapters_gets_them_again(stage: Stage) -> None:
    with stage.controller():
        first = stage.promote()
        second = stage.released()
        stage.state("canary", second)
        stage.engine.restart()
        until("both versions", lambda: {first, second} <= set(stage.engine.adapters))


def test_a_release_waits_for_an_engine_that_is_away(stage: Stage) -> None:
    stage.engine.up = False
    with stage.controller() as status:
        version = stage.released()
        until("a named reason", lambda: "nothing listens there" in beat_note(stage))
        assert status.counts()["refused"] == 0
        stage.engine.up = True
        stage.state("canary", version)


def test_a_candidate_whose_files_break_under_way_is_rolled_back(stage: Stage) -> None:
    with stage.controller():
        version = stage.released()
        stage.state("canary", version)
        (stage.versions / "version-1" / "adapter_model.safetensors").write_bytes(b"broken")
        stage.engine.restart()
        assert "cannot be loaded again" in stage.state("rolled-back", version).reason


def test_the_engine_never_holds_more_adapters_than_allowed(
    kafka: Kafka, tmp_path: Path, new_id: NewId
) -> None:
    stage = Stage(kafka, tmp_path, new_id)
    engine = EngineSettings(max_adapters=3, timeout_seconds=0.5)
    stage.settings = msgspec.structs.replace(stage.settings, engine=engine)
    with stage.controller():
        for _ in range(3):
            last = stage.promote()
        version = stage.released()
        stage.state("canary", version)
        assert len(stage.engine.adapters) <= 3
        assert {last, version} <= set(stage.engine.adapters)


def test_the_controller_waits_for_the_broker_and_goes_on_after_its_restart(
    tmp_path: Path, new_id: NewId
) -> None:
    broker = LocalBroker(tmp_path / "own-broker")
    stage = Stage(broker.kafka, tmp_path, new_id)
    with stage.controller():
        until("a named reason", lambda: "from the broker" in beat_note(stage))
        with broker:
            create_topics(broker.kafka)
            version = stage.released()
            canary = stage.state("canary", version)
            stage.serve(canary, range(20))
            until("20 requests", lambda: stage.requests() == 20)
        with broker:
            stage.serve(canary, range(20, 80))
            promoted = stage.state("promoted", version)
    assert promoted.rollout_id == canary.rollout_id


def beat_note(stage: Stage) -> str:
    found = read_heartbeat(stage.settings.state_dir, "rollout")
    return found.note if found else ""
