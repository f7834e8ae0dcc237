"""The freshest weights are better than the stalest under drift; the document shows the results."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.freshness import SYNC_EVERY, DriftRun, StackRun, Tastes, drift_table, stack_table
from benchmarks.loop import RESULTS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "learning.md").read_text(encoding="utf-8")
KEPT = msgspec.json.decode((RESULTS / "freshness.json").read_bytes())


def test_weights_renewed_most_often_beat_those_renewed_least_often_on_every_seed() -> None:
    runs = msgspec.convert(KEPT["drift"]["runs"], list[DriftRun])
    right = {(run.seed, run.sync_every): run.right for run in runs}
    seeds = {seed for seed, _ in right}
    assert len(seeds) >= 3
    for seed in seeds:
        assert right[seed, SYNC_EVERY[0]] > right[seed, SYNC_EVERY[-1]]


def test_the_document_shows_the_kept_results() -> None:
    assert drift_table(msgspec.convert(KEPT["drift"]["runs"], list[DriftRun])) in DOCUMENT
    assert stack_table(msgspec.convert(KEPT["stack"]["runs"], list[StackRun])) in DOCUMENT


def test_tastes_change_by_the_seed() -> None:
    def told(seed: int) -> list[bool]:
        tastes, found = Tastes(seed), []
        for _ in range(5_000):
            tastes.step()
            found.append(tastes.is_right("the small plan"))
        return found

    assert told(1) == told(1) != told(2)
    assert {True, False} == set(told(1))
