"""The safe answer: what a violation is corrected to, as a guard in service would have answered.

An expert's word where the policy went wrong (DAgger, arXiv 1011.0686). Whether a policy can be
taught it, and whether it keeps the rules itself, the settings alone cannot tell: that takes the
tokenizer, and lists that lie in files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from contracts.errors import SettingsError
from contracts.events import Message
from contracts.settings import Constraint, Settings
from contracts.tool_calls import answer_in
from guard.layers import answered_by, asked_in, check_answer
from guard.risk import is_violation
from guard.rules import compile_rules
from learner.assistant_turn import correction_ids
from learner.experience import Experience
from learner.policy import Policy

_PLACE = "at `$.learner.constraint.safe_answer`"


def safe_answer_ids(tokenizer: Any, config: Constraint) -> tuple[int, ...]:
    """Return the tokens of the safe answer, none where there is no constraint or no such answer."""
    if config.mode == "off" or not config.safe_answer:
        return ()
    return correction_ids(tokenizer, Message(role="assistant", content=config.safe_answer))


def corrected(
    experiences: Sequence[Experience], safe_ids: tuple[int, ...]
) -> tuple[Experience, ...]:
    """Return those with a correction: a person's as it is, and what broke a rule with the safe
    answer, where there is one; without tokens nothing was written that could be corrected."""
    told = (replace(e, correction_ids=safe_ids) if _waits_for_one(e) else e for e in experiences)
    return tuple(e for e in told if e.correction_ids)


def _waits_for_one(experience: Experience) -> bool:
    """Tell whether an answer broke a rule and nobody corrected it; it may not be kept, if it is
    unusable, but then its prompt is."""
    written = experience.token_ids or (experience.unusable and experience.prompt_ids)
    corrected_to = experience.correction_ids or experience.uncorrected
    return experience.violation and bool(written) and not corrected_to


def check_safe_answer(policy: Policy, settings: Settings) -> None:
    """Raise SettingsError unless the policy would say it as it is written, in the room that it has,
    and the monitor would find nothing in it."""
    given = settings.learner.constraint.safe_answer
    ids = safe_answer_ids(policy.tokenizer, settings.learner.constraint)
    if not ids:
        return
    room = settings.engine.max_model_len
    if len(ids) >= room:
        raise SettingsError(
            f"{len(ids)} tokens - {_PLACE}; with a question they are more than "
            f"engine.max_model_len ({room}): shorten it"
        )
    said = policy.text_of(ids)
    if "".join(given.split()) not in "".join(said.split()):
        raise SettingsError(
            f"{given!r} - {_PLACE}; the policy's tokenizer makes {said!r} of it, which would be "
            "taught in its place: use characters that it knows"
        )
    rules = compile_rules(settings)
    asked = asked_in(rules, ())
    findings = check_answer(rules, answered_by(answer_in(given), asked), everything=True).findings
    if is_violation(findings, acted=False):
        names = sorted({f"{finding.category}/{finding.rule}" for finding in findings})
        raise SettingsError(
            f"{given!r} - {_PLACE}; it breaks a rule itself ({', '.join(names)}): give one that "
            "keeps them all"
        )
