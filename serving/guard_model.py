"""The guard's own model: one more layer on the question, asked of the same engine, off by default.

It has a deadline of its own, and gives no finding when it fails or is late: a second model must
not stop the first. That is why it stands beside the rules and not in their place.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from contracts.errors import EngineError
from contracts.events import Sampling
from contracts.findings import Category, Finding
from contracts.tracing import current_trace_headers
from guard.exchange import question_of
from guard.layers import MAX_QUESTION
from guard.verdict import judge_question
from serving.engine import EngineRequest
from serving.gateway import Gateway
from serving.turn import Turn

LAYER: Category = "guard-model"
WORD_TOKENS = 4
"""Tokens drawn of its answer: one word."""

_log = logging.getLogger("headrace.gateway")


async def asked_of_guard_model(gateway: Gateway, turn: Turn) -> Turn:
    """Return the turn with what the guard model says of its question, if there is such a model."""
    guard, question = gateway.guard, turn.question
    if not guard.settings.model.name or guard.rules.modes[LAYER] == "off":
        return turn
    if question.action != "passed":
        return turn
    before = gateway.clock.monotonic()
    harmful = await _says_yes(gateway, turn)
    seconds = gateway.clock.monotonic() - before
    findings = question.findings
    if harmful:
        rule = guard.settings.model.name
        findings += (Finding(category=LAYER, rule=rule, where="question"),)
    judged: dict[str, Any] = {
        "findings": findings,
        "seconds": question.seconds | {LAYER: seconds},
        "action": judge_question(guard.rules, findings, guard.settings.escalate_above),
    }
    question = msgspec.structs.replace(question, **judged)
    return msgspec.structs.replace(turn, question=question)


async def _says_yes(gateway: Gateway, turn: Turn) -> bool:
    model = gateway.guard.settings.model
    text = question_of(turn.chat.messages)[-MAX_QUESTION:]
    request = EngineRequest(
        model=model.name,
        messages=[{"role": "user", "content": model.prompt.replace("{question}", text)}],
        tools=[],
        sampling=Sampling(temperature=0.0, max_tokens=WORD_TOKENS),
        trace=current_trace_headers(),
    )
    try:
        async with asyncio.timeout(model.timeout_seconds):
            answer = await gateway.engine.complete(request)
    except (EngineError, TimeoutError) as error:
        gateway.metrics.count("guard_model_failed")
        _log.warning("the guard model gives no answer (%s)", type(error).__name__)
        return False
    return answer.text.strip().lower().startswith(model.yes.lower())
