"""No user meets a version, and no question is copied to it, before it has passed the gate."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.errors import EngineError
from contracts.events import BASE_VERSION
from contracts.evidence import ReleaseEvidence, read_report
from contracts.ids import NewId
from contracts.settings import Gate, Kafka
from serving.engine import EngineAnswer, EngineRequest
from tests.serving.rollout_stage import RULES, Stage, TinyEngine
from tests.serving.test_gate_verdict import SOUND
from tests.serving.test_rollout_commands import answer, ask


@pytest.fixture
def guarded(kafka: Kafka, tmp_path: Path, new_id: NewId) -> Stage:
    """A stage whose engine answers "ok", and a gate that expects just that."""
    prompts = tmp_path / "prompts.jsonl"
    line = {"messages": [{"role": "user", "content": "well?"}], "expect": {"contains": ["ok"]}}
    prompts.write_text("\n".join([json.dumps(line)] * 3))
    gate = Gate(
        regression_prompts=str(prompts), red_team_prompts=str(prompts), min_incumbent_samples=0
    )
    return Stage(kafka, tmp_path, new_id, RULES, gate)


def _evidence(sequence: int) -> ReleaseEvidence:
    return replace(SOUND, sequence=sequence, parent=BASE_VERSION, as_of=datetime.now(UTC))


def test_a_version_without_evidence_is_refused_before_anyone_sees_it_and_the_reason_is_audited(
    guarded: Stage,
) -> None:
    with guarded.controller():
        version = guarded.released()
        refused = guarded.state("refused", version)
    assert refused.reason.startswith("gate: evidence missing")
    assert refused.stable.version == BASE_VERSION
    assert {state.phase for state in guarded.states()} == {"idle", "refused"}
    assert guarded.engine.asked == [version]  # warmed up, and asked nothing at the gate
    actions = [record.action for record in guarded.audits()]
    assert actions.index("gate.refused") < actions.index("rollout.refused")
    found = read_report(guarded.settings.state_dir, "desk", version)
    assert found is not None
    assert found.reasons[0].startswith("evidence missing")


class BusyBase(TinyEngine):
    """An engine that has no time for the version in service."""

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        if request.model == BASE_VERSION:
            raise EngineError("busy", 429)
        return await super().complete(request)


def test_a_version_is_refused_when_the_one_in_service_does_not_answer_beside_it(
    guarded: Stage,
) -> None:
    guarded.engine = BusyBase()
    with guarded.controller():
        version = guarded.release(*guarded.version(evidence=_evidence(1)))
        refused = guarded.state("refused", version)
    assert "3 of 3 prompts got no answer from the version in service" in refused.reason
    report = read_report(guarded.settings.state_dir, "desk", version)
    assert report is not None
    assert report.regression is not None
    assert (report.regression.unanswered, report.regression.incumbent_unanswered) == (0, 3)


def test_the_audit_of_a_promote_says_what_the_gate_had_found(guarded: Stage) -> None:
    with guarded.controller():
        version = guarded.released()
        guarded.state("refused", version)
        done = answer(guarded, ask(guarded, "promote", version))
        assert guarded.state("promoted", version).stable.version == version
    assert (done.action, done.subject) == ("rollout.promoted", version)
    assert (done.detail["operator"], done.detail["gate"]) == ("mara", "refused")
    assert done.detail["gate_reasons"][0].startswith("evidence missing")


def test_a_version_that_passes_has_its_report_in_the_audit_before_its_rollout_starts(
    guarded: Stage,
) -> None:
    with guarded.controller():
        version = guarded.release(*guarded.version(evidence=_evidence(1)))
        guarded.state("canary", version)
    asked = guarded.engine.asked
    assert asked.count(version) == 1 + 3 + 3  # to warm up, regression, red team
    assert asked.count(BASE_VERSION) == 3 + 3
    records = {record.action: record for record in guarded.audits()}
    assert list(records).index("gate.passed") < list(records).index("rollout.started")
    detail = records["gate.passed"].detail
    assert detail["regression"]["candidate"] == detail["regression"]["incumbent"] == 3
    assert detail["evidence"]["samples"] == SOUND.samples
    assert detail["evidence"]["unwatched"][-1]["name"] == "drift"
    assert detail["thresholds"]["min_samples"] == 300
    assert records["rollout.started"].detail["gate_mode"] == "enforce"
