"""The freshest weights are better than the stalest under drift."""

from __future__ import annotations

import msgspec

from benchmarks.freshness import SYNC_EVERY, DriftRun, Tastes
from benchmarks.loop import RESULTS

KEPT = msgspec.json.decode((RESULTS / "freshness.json").read_bytes())


def test_weights_renewed_most_often_beat_those_renewed_least_often_on_every_seed() -> None:
    runs = msgspec.convert(KEPT["drift"]["runs"], list[DriftRun])
    right = {(run.seed, run.sync_every): run.right for run in runs}
    seeds = {seed for seed, _ in right}
    assert len(seeds) >= 3
    for seed in seeds:
        assert right[seed, SYNC_EVERY[0]] > right[seed, SYNC_EVERY[-1]]


def test_tastes_change_by_the_seed() -> None:
    def told(seed: int) -> list[bool]:
        tastes, found = Tastes(seed), []
        for _ in range(5_000):
            tastes.step()
            found.append(tastes.is_right("the small plan"))
        return found

    assert told(1) == told(1) != told(2)
    assert {True, False} == set(told(1))
