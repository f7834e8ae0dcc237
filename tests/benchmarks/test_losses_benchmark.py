"""The comparison of losses has every way, and comes to what the decision says of them."""

from __future__ import annotations

from statistics import fmean

import msgspec

from benchmarks.loop import RESULTS
from benchmarks.losses import WAYS

ROWS = msgspec.json.decode((RESULTS / "losses.json").read_bytes())["rows"]


def test_every_way_was_measured_on_every_seed_and_learns() -> None:
    found = [(row["seed"], row["way"]) for row in ROWS]

    assert found == [(seed, way.name) for seed in range(3) for way in WAYS]
    assert all(row["gain"] > 2.0 * row["gain_error"] > 0.0 for row in ROWS)


def test_four_losses_are_one_and_those_that_imitate_learn_less() -> None:
    gains = {way.name: fmean(row["gain"] for row in ROWS if row["way"] == way.name) for way in WAYS}
    errors = [row["gain_error"] for row in ROWS]

    alike = [gains[name] for name in ("ppo", "topr", "cispo", "kto")]
    assert max(alike) - min(alike) < fmean(errors)
    assert gains["awr"] < gains["likelihood"] < min(alike)
