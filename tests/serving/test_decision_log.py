"""What a full disk or a record does not take leaves decisions audited and the chain whole."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from contracts.audit import AuditChain, broken_links
from contracts.clock import ManualClock
from contracts.events import AuditRecord, Feedback, text_of
from contracts.ids import NewId
from contracts.settings.guard import Guard
from serving.decision_log import DecisionLog
from serving.engine import EngineAnswer, EngineRequest
from serving.metrics import Metrics
from serving.outbox import Outbox, OutboxFullError
from tests.serving.scripted_gateway import ScriptedEngine, ScriptedGateway


def audited(outbox: Outbox) -> list[AuditRecord]:
    records = [entry.record for entry in outbox.pending(1000)]
    return [
        msgspec.json.decode(record.value, type=AuditRecord)
        for record in records
        if record is not None and record.topic.name == "audit"
    ]


@pytest.fixture
def feedback(clock: ManualClock) -> Feedback:
    return Feedback(
        id="f",
        time=clock.now(),
        decision_id="d",
        session_id="s",
        user_id="u",
        kind="rating",
        score=1.0,
        source="test",
    )


def test_a_write_that_finds_the_disk_full_leaves_no_gap_in_the_chain(
    tmp_path: Path,
    clock: ManualClock,
    new_id: NewId,
    feedback: Feedback,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outbox = Outbox(tmp_path, 1 << 20)
    log = DecisionLog(outbox, AuditChain("gateway", clock, new_id), Metrics())
    log.feedback(feedback)
    full = os.open("/dev/full", os.O_WRONLY)  # refuses every write with ENOSPC
    with monkeypatch.context() as disk:
        disk.setattr(outbox, "_file", full)
        with pytest.raises(OutboxFullError, match="No space left"):
            log.feedback(feedback)
    os.close(full)
    log.feedback(feedback)
    assert len(audited(outbox)) == 2
    assert broken_links(audited(outbox)) == []
    outbox.close()


def test_an_outbox_at_its_bound_leaves_no_gap_in_the_chain(
    tmp_path: Path, clock: ManualClock, new_id: NewId, feedback: Feedback
) -> None:
    outbox = Outbox(tmp_path, 6000)
    log = DecisionLog(outbox, AuditChain("gateway", clock, new_id), Metrics())
    kept = refused = 0
    for _ in range(20):
        try:
            log.feedback(feedback)
            kept += 1
        except OutboxFullError:
            refused += 1
    assert kept == len(audited(outbox))
    outbox.advance(outbox.pending(2 * kept - 2), {})
    log.feedback(feedback)
    left = audited(outbox)
    assert refused > 0
    assert [record.sequence for record in left] == [kept - 1, kept]
    outbox.close()


class LongEngine(ScriptedEngine):
    """An engine that was asked with more tokens than a record holds."""

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        answer = await super().complete(request)
        return replace(answer, prompt_token_ids=tuple(range(100_000, 240_000)))


async def test_an_answer_whose_tokens_are_too_many_is_logged_and_audited_without_them(
    tmp_path: Path,
) -> None:
    gateway = ScriptedGateway(tmp_path, engine_is=LongEngine())
    given = (await gateway.ask()).json()
    [kept] = gateway.decisions()
    assert kept.id == given["headrace"]["decision_id"]
    assert (kept.text, kept.prompt_token_ids, kept.token_ids, kept.logprobs) == (
        "I am base.",
        (),
        (),
        (),
    )
    assert [record.subject for record in gateway.audit()] == [kept.id]
    assert gateway.running.gateway.metrics.counts["lost"] == 0
    await gateway.close()


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_question_too_long_for_a_topic_is_logged_with_its_length_and_audited(
    tmp_path: Path, pieces: int
) -> None:
    allowed = Guard(max_question_characters=4_000_000)
    gateway = ScriptedGateway(tmp_path, max_body_bytes=4_000_000, guard=allowed)
    long = {"role": "user", "content": "ä" * (1_200_000 // pieces)}
    short = {"role": "user", "content": "hello"}
    given = (await gateway.ask(messages=[*[long] * pieces, short])).json()
    [kept] = gateway.decisions()
    assert kept.id == given["headrace"]["decision_id"]
    assert kept.text == "[left out: 10 characters]"
    assert kept.answer.content == "I am base."
    assert (text_of(kept.messages[-1]), len(kept.messages)) == ("hello", pieces + 1)
    size = 2_400_000 // pieces + len('{"role":"user","content":""}')
    for message in kept.messages[:-1]:
        assert text_of(message).startswith("ä" * 50_000)
        assert text_of(message).endswith(f"ä [shortened: {size} bytes in all]")
    assert [(one.action, one.subject) for one in gateway.audit()] == [("decision.served", kept.id)]
    assert gateway.running.gateway.metrics.counts["lost"] == 0
    await gateway.close()


async def test_an_answer_too_long_for_a_topic_is_logged_with_its_length(tmp_path: Path) -> None:
    gateway = ScriptedGateway(tmp_path)
    gateway.engine.says = ("x" * 1_000_000,)
    answered = (await gateway.ask()).json()
    [kept] = gateway.decisions()
    assert kept.id == answered["headrace"]["decision_id"]
    assert kept.text == "[left out: 1000000 characters]"
    assert text_of(kept.answer).endswith(" bytes in all]")
    assert text_of(kept.messages[0]) == "hello"
    await gateway.close()


async def test_a_decision_that_fits_in_no_way_leaves_an_audit_record_that_says_so(
    tmp_path: Path,
) -> None:
    gateway = ScriptedGateway(tmp_path)
    await gateway.ask()
    [kept] = gateway.decisions()
    many = ("tool",) * 200_000
    gateway.running.gateway.log.decision(replace(kept, id="lost", tools=many))
    assert [one.id for one in gateway.decisions()] == [kept.id]
    served, lost = gateway.audit()
    assert broken_links([served, lost]) == []
    assert (lost.action, lost.subject) == ("decision.lost", "lost")
    assert lost.detail["policy_version"] == "base"
    assert "bytes, allowed 900000" in lost.detail["lost"]
    assert gateway.running.gateway.metrics.counts["lost"] == 1
    await gateway.close()
