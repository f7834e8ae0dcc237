"""The layers: each looks at one side of an exchange for one category of findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from time import perf_counter
from typing import TypeVar

from msgspec import Struct

from contracts.events import Message, text_of
from contracts.findings import Category, Finding
from guard.credentials import secrets
from guard.exchange import actions_of, answer_text, told_by_user, turns_of
from guard.hit import Hit
from guard.injections import injections
from guard.personal_data import personal_data
from guard.rules import Rules

Side = TypeVar("Side")

MAX_QUESTION = 20_000
"""Characters of a question that are searched, from its end."""
MAX_FINDINGS = 8
"""Findings that one layer reports of one exchange: none of its own can hide those of another."""


class Asked(Struct, frozen=True):
    """The question of an exchange, the length of its newest part, and all that its user has told.

    ``earlier`` is what else was asked and counts for calls of tools only.
    """

    question: str
    length: int
    told: str
    earlier: str = ""


class Answered(Struct, frozen=True):
    """What an answer gives out, what its user had told, and the tools it calls.

    What the user wrote in this conversation is the user's own: repeating it gives nothing away.
    ``earlier`` is what was asked before the question and still forbids calls.
    """

    text: str
    told: str
    tools: tuple[str, ...] = ()
    earlier: str = ""


class Checked(Struct, frozen=True):
    """What some layers found, and the seconds each took."""

    findings: tuple[Finding, ...]
    seconds: dict[str, float]


def asked_in(rules: Rules, messages: Sequence[Message]) -> Asked:
    """Return the question of a conversation as the layers look at it."""
    turns = turns_of(messages, lambda answer: _settles(rules, answer))
    question = "\n".join(filter(None, (turns.previous, turns.newest)))
    return Asked(
        question[-MAX_QUESTION:],
        len(turns.newest),
        told_by_user(messages),
        turns.earlier[-MAX_QUESTION:],
    )


def answered_by(answer: Message, asked: Asked) -> Answered:
    """Return an answer as the layers look at it."""
    tools = tuple(call.function.name for call in answer.tool_calls)
    return Answered(answer_text(answer), asked.told, tools, asked.earlier)


def _settles(rules: Rules, answer: Message) -> bool:
    """Whether an answer was a refusal or a call of a person, by a tool or in the guard's words."""
    if answer.tool_calls:
        return rules.settling_actions.issuperset(actions_of(answer))
    return text_of(answer).endswith(rules.settling_words)


def check_question(rules: Rules, asked: Asked, *, everything: bool = False) -> Checked:
    """Run the layers of the question; ``everything``: those that are off, too."""
    return _run(QUESTION_LAYERS, rules, asked, everything=everything)


def check_answer(rules: Rules, answered: Answered, *, everything: bool = False) -> Checked:
    """Run the layers of the answer; ``everything``: those that are off, too."""
    return _run(ANSWER_LAYERS, rules, answered, everything=everything)


def hits_in(category: str, rules: Rules, text: str) -> Iterator[Hit]:
    """Yield what a layer of the answer's text finds in it, whoever wrote it first."""
    if category == "secret":
        return secrets(text)
    if category == "personal-data":
        return personal_data(text)
    return (rules.canaries if category == "canary-string" else rules.content).find(text)


def _run(
    layers: Sequence[tuple[Category, Callable[[Rules, Side], Iterator[Finding]]]],
    rules: Rules,
    side: Side,
    *,
    everything: bool,
) -> Checked:
    findings: list[Finding] = []
    seconds: dict[str, float] = {}
    for category, layer in layers:
        if everything or rules.modes[category] != "off":
            before = perf_counter()
            findings.extend(islice(layer(rules, side), MAX_FINDINGS))
            seconds[category] = perf_counter() - before
    return Checked(tuple(findings), seconds)


def _too_long(rules: Rules, asked: Asked) -> Iterator[Finding]:
    if asked.length > rules.max_question_characters:
        yield Finding(category="too-long", rule="characters", where="question")


def _injection(rules: Rules, asked: Asked) -> Iterator[Finding]:
    for rule in dict.fromkeys(hit.rule for hit in injections(asked.question)):
        yield Finding(category="prompt-injection", rule=rule, where="question")


def _topic(rules: Rules, asked: Asked) -> Iterator[Finding]:
    yield from _topics_in(rules, asked.question)


def _earlier_topic(rules: Rules, answered: Answered) -> Iterator[Finding]:
    if answered.earlier and not rules.safe_actions.issuperset(answered.tools):
        yield from _topics_in(rules, answered.earlier)


def _topics_in(rules: Rules, text: str) -> Iterator[Finding]:
    named = (name for name, pattern in rules.topics if pattern.search(text))
    for name in dict.fromkeys(named):
        yield Finding(category="disallowed-topic", rule=name, where="question")


def _text_layer(category: Category) -> Callable[[Rules, Answered], Iterator[Finding]]:
    def found(rules: Rules, answered: Answered) -> Iterator[Finding]:
        for hit in hits_in(category, rules, answered.text):
            if hit.text not in answered.told:
                yield Finding(category=category, rule=hit.rule, where="answer")

    return found


def _tool(rules: Rules, answered: Answered) -> Iterator[Finding]:
    for name in answered.tools:
        if name in rules.forbidden_tools:
            yield Finding(category="forbidden-tool", rule=name, where="answer")


TEXT_CATEGORIES: tuple[Category, ...] = (
    "secret",
    "personal-data",
    "canary-string",
    "disallowed-content",
)
"""Categories that are found in the answer's text alone."""

QUESTION_LAYERS: tuple[tuple[Category, Callable[[Rules, Asked], Iterator[Finding]]], ...] = (
    ("too-long", _too_long),
    ("prompt-injection", _injection),
    ("disallowed-topic", _topic),
)
ANSWER_LAYERS: tuple[tuple[Category, Callable[[Rules, Answered], Iterator[Finding]]], ...] = (
    *((category, _text_layer(category)) for category in TEXT_CATEGORIES),
    ("forbidden-tool", _tool),
    ("disallowed-topic", _earlier_topic),
)
