"""A reward model as people see it: what it was made of, and its errors on what it never saw."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from msgspec import Struct

from console.table import table
from contracts.errors import UnavailableError
from contracts.manifest import read_manifest, verify_signed
from contracts.settings import Settings
from contracts.signing import trusted_keys
from learner.calibration import Errors
from learner.reward_card import RewardModelCard, read_card


class RewardModelView(Struct, frozen=True, kw_only=True):
    """A reward model: what its manifest and its card say."""

    version: str
    number: int
    parent: str
    policy: str
    as_of: datetime
    first_offset: int
    next_offset: int
    card: RewardModelCard


def show_reward_model(settings: Settings, given: Path | None) -> RewardModelView:
    """Return the reward model of a directory, or the one that the settings name.

    UnavailableError when neither names one; ManifestError when it is not what was signed.
    """
    named = settings.learner.reward_model
    if given is None and not named:
        raise UnavailableError(
            "learner.reward_model is empty and no directory was given; make one with "
            "'python -m learner reward-model --out DIR'"
        )
    directory = given or Path(named)
    card = read_card(directory)
    version, _ = read_manifest(directory)
    manifest = verify_signed(directory, version, trusted_keys(settings))
    return RewardModelView(
        version=version,
        number=manifest.sequence,
        parent=manifest.parent,
        policy=manifest.policy,
        as_of=manifest.as_of,
        first_offset=manifest.trained_on[0].first,
        next_offset=manifest.trained_on[0].next,
        card=card,
    )


def reward_model_text(view: RewardModelView) -> str:
    """Return the model for people."""
    card, lessons = view.card, view.card.lessons
    where, learned = f"number {view.number} of {view.policy}", lessons.trained_rewards
    offsets = f"samples {view.first_offset} to {view.next_offset - 1}"
    kinds = {"rewarded answers": card.on_rewards, "pairs": card.on_pairs}
    rows = [(name, *_cells(errors)) for name, errors in kinds.items() if errors is not None]
    heads = ("what", "count", "right", "95 %", "ECE", "before", "Brier", "before", "spread")
    return f"""\
reward model {view.version[:12]} ({where}, after {view.parent[:12]})
  learned {learned} rewarded answers and {lessons.trained_pairs} pairs, {offsets}
  newest answer of {view.as_of:%Y-%m-%d %H:%M:%S}; {card.steps} of {card.planned_steps} steps taken
  {card.recipe.members} members on {card.blocks} blocks, {card.adapted} of them adapted
  calibrated on {lessons.calibrated_rewards} answers and {lessons.calibrated_pairs} pairs: \
slope {card.calibration.slope:.3f}, bias {card.calibration.bias:+.3f}

on the newest slice, which it never saw ("before" calibration):
{table(heads, rows)}"""


def _cells(errors: Errors) -> tuple[object, ...]:
    right = errors.accuracy
    return (
        right.count if right else None,
        f"{right.value:.3f}" if right else None,
        f"{right.lower:.3f} to {right.upper:.3f}" if right else None,
        f"{errors.ece:.3f}",
        f"{errors.raw_ece:.3f}",
        f"{errors.brier:.3f}",
        f"{errors.raw_brier:.3f}",
        f"{errors.spread:.3f}",
    )
