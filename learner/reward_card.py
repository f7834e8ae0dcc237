"""What a reward model is and how far it can be trusted, as a file of its own; knows no torch."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from contracts.codec import to_json
from contracts.errors import ManifestError
from learner.calibration import Calibration, Errors

CARD = "reward_model.json"


class RewardRecipe(Struct, frozen=True, kw_only=True):
    """How a reward model is made; ``members`` heads share one LoRA.

    ``kept`` is the share of the base's blocks that is used, from below, and ``adapted`` that of
    these with adapters, from above. Lessons are cut to ``max_tokens``. ``uncertainty`` is k in
    mean − k·std. Before it saw a lesson a score has the standard deviation ``prior_score``; a step
    has ``batch`` lessons, ``bucket`` at a time. Training ends after ``epochs`` passes, or when
    ``seconds`` are over. A user counts as ``user_lessons`` lessons at most.
    """

    members: int = 5
    uncertainty: float = 1.0
    kept: float = 0.5
    adapted: float = 1.0 / 3.0
    rank: int = 8
    alpha: float = 16.0
    max_tokens: int = 512
    epochs: int = 1
    batch: int = 16
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    prior_score: float = 0.75
    bucket: int = 4
    user_lessons: int = 20
    trained_share: float = 0.7
    calibrated_share: float = 0.15
    seconds: float = 3600.0
    threads: int = 1
    seed: int = 0


class LessonCounts(Struct, frozen=True, kw_only=True):
    """How many rewarded answers and pairs there were in each slice of the log, oldest first."""

    trained_rewards: int
    trained_pairs: int
    calibrated_rewards: int
    calibrated_pairs: int


class RewardModelCard(Struct, frozen=True, kw_only=True):
    """The model's shape, calibration and errors.

    ``on_rewards`` and ``on_pairs`` are of the newest slice of the log, which the model never saw;
    None where it holds none. ``steps`` of ``planned_steps`` were taken before the time was up.
    """

    format: int = 1
    base: str
    blocks: int
    adapted: int
    recipe: RewardRecipe
    lessons: LessonCounts
    steps: int
    planned_steps: int
    calibration: Calibration
    on_rewards: Errors | None
    on_pairs: Errors | None


def write_card(directory: Path, card: RewardModelCard) -> None:
    """Write ``reward_model.json`` into a directory that is being made."""
    (directory / CARD).write_bytes(msgspec.json.format(to_json(card), indent=2))


def read_card(directory: Path) -> RewardModelCard:
    """Return the card of a reward model; ManifestError when there is none that can be read."""
    try:
        return msgspec.json.decode((directory / CARD).read_bytes(), type=RewardModelCard)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise ManifestError(
            f"{directory / CARD} is no reward model's card: {error}; make one with "
            "'python -m learner reward-model'"
        ) from error
