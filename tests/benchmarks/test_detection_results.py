"""The kept results of the detection benchmark reach their aims, and the document shows them."""

from __future__ import annotations

from math import comb
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks import detection
from benchmarks.detection_report import DOCUMENT, draw_plot, write_tables
from benchmarks.loop import RESULTS
from contracts.settings.rollout import Rollout

KEPT: dict[str, Any] = msgspec.json.decode((RESULTS / "detection.json").read_bytes())


def ours(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row[name].startswith("ours")]


def test_our_rule_finds_every_bad_canary_soon_and_spares_the_good_ones() -> None:
    (row,) = ours(KEPT["detection"], "name")
    assert row["false"]["share"] <= 0.01
    assert row["power"]["share"] == 1.0
    assert row["canary"][0] <= 450


def test_our_gate_walks_into_none_of_the_traps() -> None:
    rows = ours(KEPT["traps"], "gate")
    assert len(rows) == len({row["trap"] for row in KEPT["traps"]}) == 6
    assert max(row["share"] for row in rows) <= 0.01


def test_equal_rewards_and_fair_assignments_raise_no_more_alarms_than_promised() -> None:
    equal = [row for row in ours(KEPT["rewards"], "sequence") if "worse" not in row["rewards"]]
    assert len(equal) == 10
    assert all(chance_of_so_many(row, row["alpha"]) > 0.01 for row in equal)
    fair = [row for row in ours(KEPT["sample_ratio"], "test") if row["true"] == row["weight"]]
    assert len(fair) == 3
    assert all(chance_of_so_many(row, Rollout().sample_ratio_alpha) > 0.01 for row in fair)


def chance_of_so_many(row: dict[str, Any], promised: float) -> float:
    """P(Binomial(runs, promised) >= alarms seen): small when there are more than promised."""
    runs, seen = int(row["runs"]), round(row["share"] * row["runs"])
    fewer = sum(
        comb(runs, count) * promised**count * (1.0 - promised) ** (runs - count)
        for count in range(seen)
    )
    return 1.0 - fewer


def test_more_alarms_than_promised_would_show() -> None:
    assert chance_of_so_many({"runs": 2000, "share": 0.0035}, 0.001) < 0.01
    assert chance_of_so_many({"runs": 2000, "share": 0.018}, 0.01) < 0.01


def test_the_document_shows_the_kept_results() -> None:
    document = DOCUMENT.read_text()
    for table in write_tables(KEPT, save=False).split("\n\n"):
        assert table in document


def test_the_same_seed_gives_the_same_results_and_they_can_be_drawn(tmp_path: Any) -> None:
    first, again = (detection.detection(3, detection.seeds()) for _ in range(2))
    assert first == again
    plot = tmp_path / "detection.png"
    draw_plot({"detection": first}, plot)
    assert plot.stat().st_size > 10_000


@pytest.mark.parametrize(
    "part",
    [
        *(detection.four_traps, detection.delay_bias, detection.reward_sequences),
        *(detection.sample_ratio, detection.whole_plans),
    ],
)
def test_each_part_runs(part: Any) -> None:
    rows = part(2, detection.seeds())
    assert rows
    assert all(np.isfinite(row.get("share", 0.0)) for row in rows)
