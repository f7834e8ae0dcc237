"""Which answers refuse or ask back: by the tool they call, or by their words.

Words count where they are the safe answer, which the learner itself teaches, or fit a pattern of
the owner's. Whether tools alone could ever show it depends on what the questions offer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from msgspec import Struct

from contracts.evidence import Alarm
from contracts.settings import Settings
from contracts.tool_calls import answer_in
from guard.exchange import action_of
from guard.topics import MAX_CHARACTERS
from learner.experience import Experience
from learner.policy import Policy
from learner.safe_answer import safe_answer_ids


class Evasion(Struct, frozen=True, kw_only=True):
    """One way not to answer, and by what it is told.

    ``safe_ids`` are the tokens of the safe answer, none where it is told by its action already.
    ``unseen`` says why nothing could ever show it, "" when something can.
    """

    name: Alarm
    actions: tuple[str, ...]
    text_of: Callable[[Sequence[int]], str]
    safe_ids: tuple[int, ...] = ()
    patterns: tuple[re.Pattern[str], ...] = ()
    unseen: str = ""

    def called(self, answers: Sequence[Experience]) -> list[bool]:
        """Tell of each answer whether it calls one of the tools."""
        return [e.action in self.actions for e in answers]

    def said_safe(self, answers: Sequence[Experience]) -> list[bool]:
        """Tell of each answer whether its words are the safe answer, however they are split."""
        if not self.safe_ids:
            return [False] * len(answers)
        safe = self.text_of(self.safe_ids).split()
        return [
            e.action not in self.actions and self.text_of(e.token_ids).split() == safe
            for e in answers
        ]

    def said(self, answers: Sequence[Experience]) -> list[bool]:
        """Tell of each answer whether a pattern alone gives it away."""
        if not self.patterns:
            return [False] * len(answers)
        told = zip(self.called(answers), self.said_safe(answers), answers, strict=True)
        return [not (called or safe) and self._fits(e) for called, safe, e in told]

    def _fits(self, answer: Experience) -> bool:
        text = self.text_of(answer.token_ids)[:MAX_CHARACTERS]
        return any(pattern.search(text) for pattern in self.patterns)


def evasions(
    policy: Policy, settings: Settings, answers: Sequence[Experience]
) -> tuple[Evasion, Evasion]:
    """Return how refusals and questions back are told among these answers."""
    watch, constraint = settings.gate.watch, settings.learner.constraint
    safe_ids = safe_answer_ids(policy.tokenizer, constraint)
    if action_of(answer_in(constraint.safe_answer)) in (
        *watch.refuse_actions,
        *watch.clarify_actions,
    ):
        safe_ids = ()
    given: tuple[tuple[Alarm, tuple[str, ...], tuple[str, ...], tuple[int, ...]], ...] = (
        ("refuse", watch.refuse_actions, watch.refuse_patterns, safe_ids),
        ("clarify", watch.clarify_actions, watch.clarify_patterns, ()),
    )
    refuse, clarify = (
        Evasion(
            name=name,
            actions=actions,
            text_of=policy.text_of,
            safe_ids=ids,
            patterns=tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns),
            unseen="" if ids or patterns else _unseen(name, actions, policy.text_of, answers),
        )
        for name, actions, patterns, ids in given
    )
    return refuse, clarify


def _unseen(
    name: Alarm,
    actions: tuple[str, ...],
    text_of: Callable[[Sequence[int]], str],
    answers: Sequence[Experience],
) -> str:
    """Return why these tools could not be called, "" when one was, or was offered in a prompt."""
    if any(e.action in actions for e in answers):
        return ""
    offered = [f'"{action}"' for action in actions]  # as templates write tools down, in JSON
    if offered and any(
        any(each in prompt for each in offered)
        for prompt in (text_of(e.prompt_ids) for e in answers)
    ):
        return ""
    tools = f"the tools {', '.join(actions)} were never offered" if actions else "no tool is named"
    return (
        f"{tools} in {len(answers)} answers, and words are not looked at: set "
        f"gate.watch.{name}_patterns or gate.watch.{name}_actions"
    )
