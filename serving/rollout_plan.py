"""The plan of a rollout: its steps in turn, and the hash that fixes it before the first request."""

from __future__ import annotations

from hashlib import sha256

import msgspec
from msgspec import Struct

from contracts.codec import to_json
from contracts.events import Candidate, Rollout
from contracts.settings import Settings
from contracts.settings.rollout import Rollout as Rules
from contracts.settings.rollout import Step
from serving import confidence_sequence, eprocess, sample_ratio, tripwire
from serving.assignment import shadow_weight
from serving.rollout_evidence import CountingRules

SILENT = 1.0
"""Up to here the events seen do not speak against the canary; with none at all E is 1.

Between this and ``1/alpha`` nothing is proved and nothing is promoted: a minimum sample is reached
long before the test can have spoken.
"""

NO_JUDGEMENT = ("publish_seconds", "takeover_seconds", "lease_seconds", "cooldown_seconds")
"""Rules that decide nothing about a candidate."""


class Identity(Struct, frozen=True, kw_only=True):
    """What makes a rollout this one: its id, its salt, and who meets whom."""

    rollout_id: str
    salt: str
    stable: Candidate
    candidate: Candidate


def step_of(state: Rollout, rules: Rules) -> Step:
    """Return the step that a rollout under way is in."""
    return rules.steps[min(state.step, len(rules.steps) - 1)]


def is_last(state: Rollout, rules: Rules) -> bool:
    """Tell whether what passes this step is promoted."""
    return state.step >= len(rules.steps) - 1


def largest_share(state: Rollout, rules: Rules) -> float:
    """Return the candidate's largest share of answers so far, unseen copies included.

    Findings of all steps are counted together; under the largest share they are the likeliest.
    """
    so_far = rules.steps[: state.step + 1]
    return max(step.weight or shadow_weight(step.shadow_share) for step in so_far)


def identity_of(state: Rollout) -> Identity:
    """Return the identity of a rollout under way."""
    assert state.candidate is not None, "a rollout under way has a candidate"
    return Identity(
        rollout_id=state.rollout_id or "",
        salt=state.salt,
        stable=state.stable,
        candidate=state.candidate,
    )


def plan_hash(identity: Identity, settings: Settings) -> str:
    """Return the sha256 of everything that decides this rollout, fixed before its first request."""
    rules = msgspec.to_builtins(settings.rollout)
    plan = {
        "candidate": identity.candidate.version,
        "counting": msgspec.to_builtins(CountingRules.of(settings)),
        "odds_ratios": eprocess.ODDS_RATIOS,
        "rollout_id": identity.rollout_id,
        "rules": {name: value for name, value in rules.items() if name not in NO_JUDGEMENT},
        "salt": identity.salt,
        "sample_ratio_odds": sample_ratio.ODDS_RATIOS,
        "sequence": (
            confidence_sequence.TIGHTEST_AT,
            confidence_sequence.UNSEEN,
            confidence_sequence.LARGEST_VARIANCE,
        ),
        "silent": SILENT,
        "stable": identity.stable.version,
        "tripwire_chance": tripwire.CHANCE,
    }
    return sha256(to_json(plan)).hexdigest()
