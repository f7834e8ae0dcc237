"""Whether the safe answer of the settings can be taught to this policy, and keeps the rules itself.

Settings alone cannot tell: it takes the tokenizer, and lists that lie in files.
"""

from __future__ import annotations

from contracts.errors import SettingsError
from contracts.settings import Settings
from contracts.tool_calls import answer_in
from guard.layers import answered_by, asked_in, check_answer
from guard.risk import is_violation
from guard.rules import compile_rules
from learner.constraint import safe_answer_ids
from learner.policy import Policy

_PLACE = "at `$.learner.constraint.safe_answer`"


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
