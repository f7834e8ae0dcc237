from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from console.drill_kinds import KINDS, fault_of
from console.drill_report import DrillReport, DrillRow, is_passed, report_text, stopped_by
from console.drill_version import spoil, write_prompts
from console.drill_watch import Watch
from console.main import main
from contracts.clock import ManualClock
from contracts.events import (
    BASE_VERSION,
    Assignment,
    AuditRecord,
    Candidate,
    Decision,
    GuardReport,
    Message,
    Rollout,
    Sampling,
    Timings,
)
from contracts.settings import Kafka
from contracts.topics import DECISIONS, ROLLOUTS
from tests.topic_log import publish
from tests.until import until

BAD = "b" * 64
STABLE = Candidate(version=BASE_VERSION)
States = Callable[..., Rollout]


@pytest.fixture
def watch(kafka: Kafka) -> Iterator[Watch]:
    watching = Watch(kafka, "desk")
    watching.about(BAD)
    yield watching
    watching.close()


@pytest.fixture
def state(clock: ManualClock) -> States:
    """Makes the next state of the rollout, one second later each time."""

    def make(**changes: Any) -> Rollout:
        clock.advance(1)
        epoch = int((clock.now() - ManualClock().now()).total_seconds())
        changes = {"phase": "idle", "stable": STABLE, **changes}
        return Rollout(id=f"state-{epoch}", time=clock.now(), policy="desk", epoch=epoch, **changes)

    return make


def follow(watch: Watch, over: Callable[[], bool]) -> None:
    def reached() -> bool:
        watch.follow(0.1)
        return over()

    until("the watch to follow the log", reached)


def answered(clock: ManualClock, number: int, **changes: Any) -> Decision:
    given = Assignment(policy="desk", policy_version=BASE_VERSION)
    return Decision(
        id=f"decision-{number}",
        time=clock.now(),
        session_id=f"session-{number}",
        user_id=f"user-{number % 2}",
        assignment=replace(given, **changes.pop("given", {})),
        messages=(Message(role="user", content="hello"),),
        answer=Message(role="assistant", content="hi"),
        action="answer",
        text="hi",
        prompt_token_ids=(number,),
        sampling=Sampling(),
        finish_reason="stop",
        timings=Timings(),
        engine="transformers",
        **changes,
    )


def test_the_watch_counts_whom_a_bad_version_reached_until_it_was_rolled_back(
    watch: Watch, kafka: Kafka, clock: ManualClock, state: States
) -> None:
    bad = Candidate(version=BAD, sequence=1, location="/nowhere")
    canary = state(phase="canary", candidate=bad, weight=0.1)
    by_bad = {"policy_version": BAD, "arm": "canary"}
    instead = f"canary: {BAD[:12]}: the engine answered with status 500"
    publish(
        kafka,
        DECISIONS,
        answered(clock, 1, given=by_bad),
        answered(clock, 1, given=by_bad),  # delivered twice
        answered(clock, 2, given=by_bad, guard=GuardReport(action="blocked", where="answer")),
        answered(clock, 3, given=by_bad),
        answered(clock, 4, given={"policy_version": BAD, "arm": "shadow"}),
        answered(clock, 5, error=instead),
        answered(clock, 6),
    )
    watch.take(canary)
    assert watch.under_way()
    follow(watch, lambda: watch.has_read({"decision-6"}))
    over = state(phase="rolled-back", judged=BAD, reason="safety: e-value 300 reached 250")
    publish(kafka, ROLLOUTS, over)
    follow(watch, lambda: watch.ending is not None)
    assert watch.ending is not None
    found = watch.reached()
    assert (found.users, found.answers, found.kept_back) == (1, 3, 1)
    assert (found.shadow, found.replaced) == (1, 1)
    assert found.requests == 5
    assert (watch.ending.ended, watch.ending.at) == ("rolled-back", over.time)
    assert watch.exposed_at == canary.time
    assert stopped_by("rolled-back", watch.ending.reason) == "safety"


@pytest.mark.parametrize(
    ("changes", "ended"),
    [
        ({"phase": "refused", "judged": BAD}, "refused"),
        ({"phase": "promoted", "stable": Candidate(version=BAD)}, "promoted"),
        ({"phase": "rolled-back", "judged": "another"}, None),
    ],
)
def test_the_watch_knows_each_end_of_its_own_version(
    watch: Watch, state: States, changes: dict[str, Any], ended: str | None
) -> None:
    watch.take(state(**changes))
    assert (watch.ending.ended if watch.ending else None) == ended


def test_a_release_that_gave_way_to_a_newer_one_is_known(watch: Watch, clock: ManualClock) -> None:
    record = AuditRecord(
        id="audit-1",
        time=clock.now(),
        producer="rollout/1",
        sequence=0,
        previous="",
        action="release.superseded",
        subject=BAD,
    )
    watch.take(record)
    assert watch.superseded
    assert watch.ending is None


def test_a_refusal_by_the_gate_is_told_apart_from_one_by_the_verification() -> None:
    assert stopped_by("refused", "gate: evidence missing") == "gate"
    assert stopped_by("refused", "manifest.sig is missing") == "verification"


def test_a_drill_passes_when_each_version_was_stopped_and_no_request_failed() -> None:
    row = DrillRow(
        kind="slow", variant="", version=BAD, ended="rolled-back", by="slow", reason="slow: late"
    )
    report = DrillReport(
        kind="slow", what="", seed=0, skip_gate=False, asked=9, failed_requests=0, rows=(row,)
    )
    assert is_passed(report)
    assert "PASSED: 9 requests" in report_text(report)
    for worse in (
        replace(report, failed_requests=1),
        replace(report, rows=(row, replace(row, ended="promoted"))),
        replace(report, rows=(replace(row, ended="undecided"),)),
        replace(report, rows=()),
    ):
        assert not is_passed(worse)
        assert "NOT PASSED" in report_text(worse)


def test_a_version_is_spoiled_by_one_byte_or_by_its_missing_signature(
    tmp_path: Path,
) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"weights")
    spoil(tmp_path, "")
    assert weights.read_bytes() == b"weights"
    spoil(tmp_path, "byte-flipped")
    assert weights.read_bytes()[:-1] == b"weight"
    assert weights.read_bytes() != b"weights"
    (tmp_path / "manifest.sig").write_bytes(b"signed")
    spoil(tmp_path, "unsigned")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_model.safetensors"]


def test_only_versions_that_the_engine_is_to_spoil_have_faults() -> None:
    faults = {name: fault_of(kind, BAD, 2.0) for name, kind in KINDS.items()}
    assert faults["slow"] == {"model": BAD, "delay_seconds": 6.0}
    assert faults["crash"] == {"model": BAD, "status": 500}
    assert not any((faults["unsafe"], faults["garbage"], faults["tampered"]))


def test_the_prompts_of_the_policy_are_taken_from_the_log(
    kafka: Kafka, clock: ManualClock, tmp_path: Path
) -> None:
    other = {"policy": "gold"}
    publish(kafka, DECISIONS, answered(clock, 1), answered(clock, 2, given=other))
    write_prompts(kafka, "desk", tmp_path / "prompts.jsonl")
    assert json.loads((tmp_path / "prompts.jsonl").read_text()) == {"prompt_token_ids": [1]}


def test_a_drill_without_a_stack_says_how_to_start_one(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text(json.dumps({"state_dir": str(tmp_path)}))
    answer = CliRunner().invoke(main, ["--settings", str(path), "drill", "garbage"])
    assert answer.exit_code == 1
    assert "headrace up" in answer.output
