"""The ways of learning that `benchmarks.learning` compares; knows no torch."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from benchmarks.learning_questions import ESCALATE

BANDIT, SKYLINE = "bandit", "skyline"
BANDIT_FILE = Path(__file__).with_name("learning_bandit.py")
"""Most of what the bandit is stands in code, so that its recipe is that."""
NOISY = "-noisy"
"""Ends the names of variants whose users rate with `NOISE` in the place of the usual."""
NOISE = 1.0
"""Standard deviation of a rating's mood, in units of utility: one in four or five is wrong."""


class Variant(Struct, frozen=True, kw_only=True):
    """A way of learning: settings of the learner, and what is taken from it.

    Not ``taught``, it learns nothing at all.
    """

    name: str
    learner: dict[str, Any] = {}
    weighted: bool = True
    corrected: bool = True
    taught: bool = True


SHARED: dict[str, Any] = {
    "batch_samples": 64,
    "publish_every": 2,
    "learning_rate": 5e-4,
    "lora_rank": 32,
    "lora_alpha": 64.0,
    "keep_states": 0,
}
PRICE: dict[str, Any] = {"rate": 10.0, "margin": 0.15, "least": 1.5, "multiplier": 1.5}
NO_PRICE: dict[str, Any] = {"multiplier": 0.0, "rate": 1e-12}
"""A price that stays at nothing: with the constraint off, the safe answer would go, too."""
SHORT_ANSWERS: dict[str, Any] = {
    "loss": "likelihood",
    "learning_rate": 3e-4,
    "warm_up_batches": 10,
    "correction_weight": 0.6,
    "correction_replay": 32,
    "preference_weight": 0.0,
    "replay_share": 1.0,
    "replay_capacity": 16_384,
    "max_version_lag": 1_000,
    "constraint": {**PRICE, "safe_answer": ESCALATE},
}
"""For answers of a few words: all that was heard is repeated as often as what is new (decision
0450), and the price of violations follows the few batches that there are. What broke a rule is
corrected to the answer that hands over."""


def _variant(name: str, **changes: Any) -> Variant:
    fields = ("weighted", "corrected", "taught")
    kept = {field: changes.pop(field) for field in fields if field in changes}
    return Variant(name=name, learner={**SHORT_ANSWERS, **changes}, **kept)


VARIANTS = (
    _variant("full"),
    _variant("warm-start", taught=False),
    _variant("ppo", loss="ppo"),
    _variant("unweighted", loss="ppo", weighted=False),
    _variant("no-baseline", value_learning_rate=1e-12),
    _variant("no-replay", replay_share=0.0, correction_replay=0),
    _variant("no-lagrangian", constraint={**NO_PRICE, "safe_answer": ESCALATE}),
    _variant("no-corrections", corrected=False),
    _variant("no-safe-answer", constraint=PRICE),
    _variant(f"full{NOISY}"),
)

REFIT, EXPLORED = 250, 0.05
"""Interactions between two fits of the bandit, and how often it answers at random."""

TEACHING: dict[str, Any] = {
    "correction_weight": 1.0,
    "preference_weight": 0.0,
    "learning_rate": SHORT_ANSWERS["learning_rate"],
    "warm_up_batches": SHORT_ANSWERS["warm_up_batches"],
}
"""The loop's own pace, so that the way to the skyline is not one of the pace."""
TOLD = 0.57
"""Share of the live questions whose right answer the skyline is told: of so many the loop hears."""
AGAIN = 1
"""Earlier labels that the skyline sees again, for each new one."""


def recipe_of(variant: str) -> str:
    """Return a short hash of how a variant learns; the same in every process."""
    if variant.startswith(BANDIT):
        code = sha256(BANDIT_FILE.read_bytes()).hexdigest()
        recipe: dict[str, Any] = {"refit": REFIT, "explored": EXPLORED, "code": code}
    elif variant == SKYLINE:
        recipe = {"learner": {**SHARED, **TEACHING}, "told": TOLD, "again": AGAIN}
    else:
        way = next(one for one in VARIANTS if one.name == variant)
        recipe = {**asdict(way), "learner": {**SHARED, **way.learner}}
        if way.taught:  # the usual, which kept runs were hashed without
            del recipe["taught"]
    if variant.endswith(NOISY):
        recipe["noise"] = NOISE
    return sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
