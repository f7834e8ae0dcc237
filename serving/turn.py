"""One chat request on its way through the gateway: what is known of it, and what it becomes.

Plain functions and frozen values; nothing here waits, reads or writes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from opentelemetry.util.types import AttributeValue

from contracts.events import (
    RULE_VERSION,
    Assignment,
    Decision,
    FeatureValue,
    GuardReport,
    Message,
    Rung,
    Timings,
)
from contracts.settings import Settings
from contracts.tokens import feedback_token
from contracts.tool_calls import ToolCallScanner, answer_message
from serving.budget import Budget
from serving.chat_request import ChatRequest
from serving.engine import EngineAnswer
from serving.guarding import CONTENT_FILTER, Question, Reply, action_taken
from serving.rungs import Step

FLAG = "headrace.policy_version"
PROVIDER = "headrace"


class Turn(Struct, frozen=True, kw_only=True):
    """A request after assignment and feature look-up. ``steps`` are tried in order.

    ``arrived`` and ``asked`` are when the request came and when it was read, in clock seconds;
    ``under_way`` is how many were with the engine then, itself among them; ``key`` names the API
    key, if there are any.
    """

    decision_id: str
    session_id: str
    user_id: str
    chat: ChatRequest
    question: Question
    policy: str
    budget: Budget
    steps: tuple[Step, ...]
    features: dict[str, FeatureValue]
    topic: str
    features_seconds: float
    arrived: float
    arrived_at: datetime
    asked: float
    under_way: int
    key: str | None

    def scanner(self) -> ToolCallScanner:
        """Return a fresh scanner for this request's tools."""
        return ToolCallScanner(self.chat.tool_names, self.decision_id[-12:])


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of a turn. ``answer.text`` may be cut short; ``error`` says which arm failed.

    ``charged``: whether it counts against the version when it broke off.
    ``message`` is what leaves; where the guard put it there, ``guard.drawn`` is the policy's.
    """

    assignment: Assignment
    rung: Rung
    answer: EngineAnswer
    message: Message
    finish_reason: str
    total_seconds: float
    error: str | None = None
    guard: GuardReport | None = None
    charged: bool = True


class Headrace(Struct, frozen=True):
    """Our part of a response body: what feedback must name, and what was decided."""

    decision_id: str
    session_id: str
    user_id: str
    policy_version: str
    arm: str
    rung: str
    action: str
    feedback_token: str
    session_token: str


def finished(turn: Turn, step: Step, answer: EngineAnswer, notes: str) -> Outcome:
    """Return the outcome of a whole, unstreamed answer; ``total_seconds`` is still to be set."""
    scanner = turn.scanner()
    message = answer_message([*scanner.feed(answer.text), *scanner.finish()])
    return Outcome(
        assignment=step.assignment,
        rung=step.rung,
        answer=answer,
        message=message,
        finish_reason=finish_reason(message, answer.finish_reason),
        total_seconds=0.0,
        error=notes or None,
    )


def replied(outcome: Outcome, reply: Reply) -> Outcome:
    """Return the outcome as the guard lets it leave."""
    return msgspec.structs.replace(
        outcome,
        message=reply.message,
        finish_reason=reply.finish_reason or outcome.finish_reason,
        guard=reply.report,
    )


def unasked(turn: Turn, reply: Reply) -> Outcome:
    """Return the outcome of a question that no version was asked: the guard is a rule."""
    return Outcome(
        assignment=msgspec.structs.replace(turn.steps[0].assignment, policy_version=RULE_VERSION),
        rung="rule",
        answer=EngineAnswer(
            text="",
            prompt_token_ids=(),
            token_ids=(),
            logprobs=(),
            finish_reason=CONTENT_FILTER,
        ),
        message=reply.message,
        finish_reason=reply.finish_reason or CONTENT_FILTER,
        total_seconds=0.0,
        guard=reply.report,
    )


def finish_reason(message: Message, engine_reason: str) -> str:
    """Return "tool_calls" for a finished answer with calls, else the engine's reason."""
    return "tool_calls" if message.tool_calls and engine_reason == "stop" else engine_reason


def decision_of(turn: Turn, outcome: Outcome, engine: str, trace_id: str | None) -> Decision:
    """Return the event of an answered turn."""
    answer = outcome.answer
    return Decision(
        id=turn.decision_id,
        time=turn.arrived_at,
        session_id=turn.session_id,
        user_id=turn.user_id,
        assignment=outcome.assignment,
        messages=turn.chat.messages,
        tools=turn.chat.tool_names,
        answer=outcome.message,
        action=action_taken(outcome.message, outcome.guard),
        text=answer.text,
        prompt_token_ids=answer.prompt_token_ids,
        token_ids=answer.token_ids,
        logprobs=answer.logprobs,
        sampling=turn.chat.sampling,
        finish_reason=outcome.finish_reason,
        features=turn.features,
        topic=turn.topic,
        timings=Timings(
            features_seconds=turn.features_seconds,
            first_token_seconds=answer.first_token_seconds,
            total_seconds=outcome.total_seconds,
        ),
        engine="rule" if outcome.rung == "rule" else engine,
        streamed=turn.chat.stream,
        error=outcome.error,
        trace_id=trace_id,
        rung=outcome.rung,
        key=turn.key,
        guard=outcome.guard,
    )


def headrace_of(turn: Turn, outcome: Outcome, secret: bytes) -> Headrace:
    """Return our part of the response body."""
    return Headrace(
        decision_id=turn.decision_id,
        session_id=turn.session_id,
        user_id=turn.user_id,
        policy_version=outcome.assignment.policy_version,
        arm=outcome.assignment.arm,
        rung=outcome.rung,
        action=action_taken(outcome.message, outcome.guard),
        feedback_token=feedback_token(secret, turn.decision_id, turn.session_id, turn.user_id),
        session_token=feedback_token(secret, "", turn.session_id, turn.user_id),
    )


def request_attributes(turn: Turn, settings: Settings) -> dict[str, AttributeValue]:
    """Return the span attributes known before the answer (GenAI conventions)."""
    sampling = turn.chat.sampling
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": settings.engine.kind,
        "gen_ai.request.model": turn.policy,
        "gen_ai.request.stream": turn.chat.stream,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.conversation.id": turn.session_id,
        "headrace.decision.id": turn.decision_id,
        **flag_attributes(turn),
    }
    if sampling.seed is not None:
        attributes["gen_ai.request.seed"] = sampling.seed
    return attributes


def flag_attributes(turn: Turn) -> dict[str, AttributeValue]:
    """Return the evaluation of the flag behind the assignment (OpenFeature, Appendix D)."""
    given = turn.steps[0].assignment
    return {
        "feature_flag.key": FLAG,
        "feature_flag.provider.name": PROVIDER,
        "feature_flag.set.id": given.rollout_id or given.policy,
        "feature_flag.context.id": turn.user_id,
        "feature_flag.result.variant": given.arm,
        "feature_flag.result.reason": "split" if given.probability < 1.0 else "static",
    }


def response_attributes(turn: Turn, outcome: Outcome) -> dict[str, AttributeValue]:
    """Return the span attributes known after the answer."""
    answer = outcome.answer
    attributes: dict[str, AttributeValue] = {
        "gen_ai.response.id": turn.decision_id,
        "gen_ai.response.model": outcome.assignment.policy_version,
        "gen_ai.response.finish_reasons": [outcome.finish_reason],
        "gen_ai.usage.input_tokens": len(answer.prompt_token_ids),
        "gen_ai.usage.output_tokens": len(answer.token_ids),
        "headrace.arm": outcome.assignment.arm,
        "headrace.rung": outcome.rung,
        "headrace.action": action_taken(outcome.message, outcome.guard),
    }
    if answer.first_token_seconds is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = answer.first_token_seconds
    if outcome.guard is not None and outcome.guard.findings:
        attributes["headrace.guard.action"] = outcome.guard.action
        attributes["headrace.guard.risk"] = outcome.guard.risk
        attributes["headrace.guard.findings"] = [
            f"{finding.category}/{finding.rule}" for finding in outcome.guard.findings
        ]
    if outcome.error:
        attributes["error.type"] = outcome.error.partition(":")[0]
    return attributes


def usage_of(answer: EngineAnswer) -> dict[str, Any]:
    """Return the token counts of an answer in the OpenAI form."""
    asked, drawn = len(answer.prompt_token_ids), len(answer.token_ids)
    return {"prompt_tokens": asked, "completion_tokens": drawn, "total_tokens": asked + drawn}
