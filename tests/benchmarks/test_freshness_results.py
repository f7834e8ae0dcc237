"""The freshest weights are better than the stalest under drift."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import msgspec
import pytest

from benchmarks import freshness
from benchmarks.freshness import SYNC_EVERY, DriftRun, Tastes
from benchmarks.loop import RESULTS
from benchmarks.plan_desk import Desk

KEPT = msgspec.json.decode((RESULTS / "freshness.json").read_bytes())


def test_weights_renewed_most_often_beat_those_renewed_least_often_on_every_seed() -> None:
    runs = msgspec.convert(KEPT["drift"]["runs"], list[DriftRun])
    right = {(run.seed, run.sync_every): run.right for run in runs}
    seeds = {seed for seed, _ in right}
    assert len(seeds) >= 3
    for seed in seeds:
        assert right[seed, SYNC_EVERY[0]] > right[seed, SYNC_EVERY[-1]]
    means = [fmean(right[seed, every] for seed in seeds) for every in SYNC_EVERY]
    assert means[:3] == sorted(means[:3], reverse=True)
    assert means[2] > max(means[3:])


def test_tastes_change_by_the_seed() -> None:
    def told(seed: int) -> list[bool]:
        tastes, found = Tastes(seed), []
        for _ in range(5_000):
            tastes.step()
            found.append(tastes.is_right("the small plan"))
        return found

    assert told(1) == told(1) != told(2)
    assert {True, False} == set(told(1))


def test_weights_that_are_served_learn_what_is_right_and_those_that_are_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("BATCHES", 24), ("WARM_UP", 12), ("CHANGES_EVERY", 1e9)):
        monkeypatch.setattr(freshness, name, value)
    base = Desk.make_base(tmp_path / "base")
    often, never = (freshness.drift_run(base, every, seed=0).right for every in (1, 32))
    assert often > 0.8
    assert never == pytest.approx(0.5, abs=0.12)
