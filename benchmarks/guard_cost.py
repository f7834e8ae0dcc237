"""What the guard costs: CPU per layer, and the characters it holds back of a stream."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import mean, quantiles
from typing import Any

from contracts.events import Message
from contracts.findings import Finding
from contracts.settings import Settings
from guard.hold_back import HeldBack
from guard.layers import (
    ANSWER_LAYERS,
    QUESTION_LAYERS,
    Answered,
    Asked,
    answered_by,
    asked_in,
    check_answer,
    check_question,
)
from guard.rules import Rules
from guard.verdict import judge_answer, judge_question

QUESTION, ANSWER = 250, 500
"""Characters of a question and of an answer."""
CALLS, REPEATS = 2000, 5

_TOKEN = re.compile(r"\s?\S{1,4}|\s")


def microseconds(work: Callable[[str], object], texts: Sequence[str]) -> float:
    """Return the CPU of one call: the best of some rounds, as other work only adds to it."""
    best = float("inf")
    for _ in range(REPEATS):
        before = time.process_time()
        for place in range(CALLS):
            work(texts[place % len(texts)])
        best = min(best, (time.process_time() - before) / CALLS * 1e6)
    return round(best, 1)


def of_length(texts: Sequence[str], length: int) -> list[str]:
    """Return texts joined until each has a length."""
    found, present = [], ""
    for text in texts:
        present = f"{present} {text}".strip()
        if len(present) >= length:
            found.append(present[:length])
            present = ""
    return found


def layer_costs(rules: Rules, questions: list[str], answers: list[str]) -> dict[str, float]:
    """Return the CPU of each layer and of all in microseconds per exchange."""
    asked, answered = of_length(questions, QUESTION), of_length(answers, ANSWER)
    costs: dict[str, float] = {}
    for category, of_question in QUESTION_LAYERS:
        costs[category] = microseconds(partial(_ask, rules, of_question), asked)
    for category, of_answer in ANSWER_LAYERS:
        micros = microseconds(partial(_answer, rules, of_answer), answered)
        costs[category] = costs.get(category, 0.0) + micros
    both = [f"{one}\0{other}" for one, other in zip(asked * 9, answered, strict=False)]
    costs["all, question and answer"] = microseconds(lambda text: exchange(rules, text), both)
    return costs


def _ask(rules: Rules, layer: Callable[[Rules, Asked], Iterator[Finding]], text: str) -> object:
    return list(layer(rules, Asked(text, len(text), text)))


def _answer(
    rules: Rules, layer: Callable[[Rules, Answered], Iterator[Finding]], text: str
) -> object:
    return list(layer(rules, Answered(text, "")))


def exchange(rules: Rules, text: str) -> object:
    """Check and judge a question and an answer, as the gateway does."""
    question, _, answer = text.partition("\0")
    limit = Settings().guard.escalate_above
    asked = asked_in(rules, (Message(role="user", content=question),))
    first = check_question(rules, asked)
    judge_question(rules, first.findings, limit)
    said = _says(answer)
    then = check_answer(rules, answered_by(said, asked))
    return judge_answer(rules, then.findings + first.findings, said, limit)


def _says(text: str) -> Message:
    return Message(role="assistant", content=text)


def held_back(rules: Rules, answers: Sequence[str]) -> dict[str, Any]:
    """Return how many characters wait after each chunk of harmless answers, and the CPU of one."""
    waiting: list[int] = []
    first: list[int] = []
    chunks = 0
    before = time.process_time()
    for answer in answers:
        held, drawn, sent = HeldBack(rules, told=""), 0, 0
        pieces = _TOKEN.findall(answer)
        answer_waits: list[int] = []
        for piece in pieces:
            drawn += len(piece)
            released = len(held.feed(piece))
            if released and not sent:
                first.append(drawn)
            sent += released
            answer_waits.append(drawn - sent)
        chunks += len(pieces)
        if not held.found:
            waiting += answer_waits
    seconds = time.process_time() - before
    return {
        "answers": len(answers),
        "chunks": chunks,
        "characters_waiting": _spread(waiting),
        "characters_drawn_when_the_first_leaves": _spread(first),
        "microseconds_per_chunk": round(seconds / chunks * 1e6, 1),
    }


def _spread(values: list[int]) -> dict[str, float]:
    cuts = quantiles(values, n=100)
    return {
        "mean": round(mean(values), 1),
        "p50": cuts[49],
        "p99": cuts[98],
        "max": max(values),
    }
