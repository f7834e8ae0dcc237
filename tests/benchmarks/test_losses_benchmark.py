"""The comparison of losses has every way, and the decision shows what was measured."""

from __future__ import annotations

import msgspec

from benchmarks.loop import RESULTS, ROOT
from benchmarks.losses import WAYS, table

RESULT = msgspec.json.decode((RESULTS / "losses.json").read_bytes())


def test_every_way_was_measured_on_every_seed() -> None:
    found = [(row["seed"], row["way"]) for row in RESULT["rows"]]

    assert found == [(seed, way.name) for seed in range(3) for way in WAYS]
    assert all(-2.0 <= row["gain"] <= 2.0 and row["gain_error"] > 0.0 for row in RESULT["rows"])


def test_the_decision_shows_the_table_of_the_results() -> None:
    record = ROOT / "docs" / "decisions" / "0410-losses-of-one-signature.md"

    assert table(RESULT) in record.read_text()
