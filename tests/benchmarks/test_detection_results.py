"""The kept results of the detection benchmark reach their aims, and the document shows them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks import detection
from benchmarks.detection_report import DOCUMENT, draw_plot, write_tables
from benchmarks.loop import RESULTS
from contracts.rollout_settings import Rollout

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
    assert all(row["share"] <= row["alpha"] + 2 * row["se"] for row in equal)
    for alpha in (0.01, 0.001):
        shares = [row["share"] for row in equal if row["alpha"] == alpha]
        assert sum(shares) / len(shares) <= alpha
    fair = [row for row in ours(KEPT["sample_ratio"], "test") if row["true"] == row["weight"]]
    assert len(fair) == 3
    assert sum(row["share"] for row in fair) / len(fair) <= Rollout().sample_ratio_alpha


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
