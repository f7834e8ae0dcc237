"""Going down the ladder: the first rung that answers within its share of the request's budget."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol, TypeVar

from msgspec import Struct

from contracts.errors import EngineError
from serving.budget import is_charged
from serving.engine import EngineAnswer, EngineChunk, EngineRequest
from serving.gateway import Gateway, engine_request, reason_to_keep, reason_without_content
from serving.rollout_guardrails import UNCHARGED
from serving.rungs import Step
from serving.turn import Turn
from serving.wire_errors import Refusal

Answered = TypeVar("Answered")

BUSY = 429
"""The engine's status when it is well but full; no version is to blame for it."""

_log = logging.getLogger("headrace.gateway")


class Answerer(Protocol):
    """What answers on a rung: the engine, or the reply by rule."""

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        """Return a whole answer."""
        ...

    def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Return the answer piece by piece."""
        ...


Ask = Callable[[Answerer, EngineRequest], Awaitable[Answered]]


class Climb(Struct):
    """One request's way down: when its budget ends, and why rungs above gave no answer.

    ``doubted`` is a candidate that called the request invalid, "" if none did.
    """

    deadline: float
    doubted: str = ""
    notes: list[str] = []


async def first_that_answers(
    gateway: Gateway, turn: Turn, ask: Ask[Answered]
) -> tuple[Step, Answered, str]:
    """Ask rung after rung; return (who answered, the answer, why not the rungs above).

    The first version has half of the time, and so has each before another version of what is left;
    the rule needs none. A version whose breaker is open is passed over at once. A request that the
    engine calls invalid is refused, but a candidate's word alone is not taken for it: if another
    version answers, it was the candidate's failure. Raises Refusal 400, and Refusal 503 when no
    rung answers, which happens only without a reply by rule.
    """
    climb = Climb(turn.asked + turn.budget.seconds)
    for place, step in enumerate(turn.steps):
        answer = await _ask_rung(gateway, turn, climb, place, ask)
        if answer is not None:
            if step.rung != "rule":
                _note_time(gateway, turn)
                if climb.doubted:
                    gateway.breakers.failed(climb.doubted)
            if climb.notes and step.rung != "rule":
                gateway.metrics.count("fallbacks")
            return step, answer, "; ".join(climb.notes)
    gateway.metrics.count("failed")
    raise Refusal(
        503,
        "the engine gives no answer; try again soon",
        code="engine_unavailable",
        retry_after=1,
    ) from EngineError("; ".join(climb.notes))


async def _ask_rung(
    gateway: Gateway, turn: Turn, climb: Climb, place: int, ask: Ask[Answered]
) -> Answered | None:
    """Return the answer of one rung, None when it gives none; why is in the notes."""
    step = turn.steps[place]
    request = engine_request(turn, step.assignment)
    if step.rung == "rule":
        gateway.metrics.count("failed")
        return await ask(gateway.rule, request)
    version = step.assignment.policy_version
    if not gateway.breakers.admits(version):
        _note(climb, step, "skipped, it failed too often of late")
        return None
    seconds = _share(gateway, turn, climb, place)
    try:
        async with asyncio.timeout(seconds):
            return await ask(gateway.engine, request)
    except EngineError as error:
        if error.status == 400 and step.rung != "canary":
            raise Refusal(400, str(error), code="engine_refused") from error
        if error.status == 400:
            climb.doubted = version
        elif error.status != BUSY:
            gateway.breakers.failed(version)
        _note(climb, step, reason_to_keep(gateway, error))
        _log.warning("%s gives no answer: %s", version[:12], reason_without_content(error))
    except TimeoutError:
        tokens = 0 if turn.chat.stream else turn.chat.sampling.max_tokens
        charged = is_charged(gateway.settings.gateway, turn.budget, seconds, tokens)
        if charged:
            gateway.breakers.failed(version)
        _note_time(gateway, turn, ended=False)
        _note(climb, step, f"no answer in {seconds:.3g} s", charged=charged)
        _log.warning("%s gives no answer in %.3g s", version[:12], seconds)
    return None


def _share(gateway: Gateway, turn: Turn, climb: Climb, place: int) -> float:
    """Return the seconds a rung has: half of what is left for the first one and for each before
    another version, else all of it.

    The first rung's time depends on nothing that comes after it: the arms are compared by how
    often it fails, and a canary has one version more after it than a stable version.
    """
    left = climb.deadline - gateway.clock.monotonic()
    after = turn.steps[place + 1 :]
    return left / 2 if place == 0 or any(step.rung != "rule" for step in after) else left


def _note_time(gateway: Gateway, turn: Turn, *, ended: bool = True) -> None:
    """Tell the load what this request waited, or has waited in vain so far."""
    waited = gateway.clock.monotonic() - turn.asked
    gateway.load.took(turn.under_way, waited, stream=turn.chat.stream, ended=ended)


def _note(climb: Climb, step: Step, why: str, *, charged: bool = True) -> None:
    """Keep why a rung did not answer, charged to the arm it answers for unless the request did it:
    whoever asks for what cannot come in time may not have a version rolled back by it.
    """
    given = step.assignment
    arm = given.arm if charged else f"{given.arm}{UNCHARGED}"
    climb.notes.append(f"{arm}: {given.policy_version[:12]}: {why}")
