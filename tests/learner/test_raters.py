"""Shares of labels, and intervals that know that one person's labels are alike."""

from __future__ import annotations

import numpy as np
import pytest

from learner.raters import Proportion, proportion, raters_of, strangers


def _of_strangers(right: int, count: int) -> Proportion:
    right_n = (np.arange(count) < right).astype(float)
    return proportion(right_n, strangers(count))


def test_the_interval_of_a_share_is_wilsons() -> None:
    found = _of_strangers(8000, 10_000)
    assert [found.lower, found.upper] == pytest.approx([0.79205, 0.80773], abs=1e-4)
    assert _of_strangers(10, 10).lower == pytest.approx(0.7225, abs=1e-4)
    assert _of_strangers(0, 10).lower == pytest.approx(0.0, abs=1e-12)


def test_the_labels_of_one_person_are_one_draw() -> None:
    right_n = np.repeat([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0], 50)
    people = [f"user-{n // 50}" for n in range(500)]
    found = proportion(right_n, raters_of(people, 1000))
    few = _of_strangers(7, 10)
    assert (found.value, found.count) == (0.7, 500)
    assert found.upper - found.lower == pytest.approx(few.upper - few.lower, rel=0.1)
    assert proportion(np.ones(500), raters_of(["one"] * 500, 20)).lower < 0.3


def test_an_interval_over_people_holds_the_truth_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(3), 0
    for _ in range(400):
        chance_u = rng.choice([0.3, 0.9], 40)
        counts_u = rng.integers(1, 30, 40)
        right_n = np.concatenate(
            [rng.random(c) < p for p, c in zip(chance_u, counts_u, strict=True)]
        ).astype(float)
        people = [f"user-{u}" for u, c in enumerate(counts_u) for _ in range(c)]
        found = proportion(right_n, raters_of(people, 1000))
        inside += found.lower <= 0.6 <= found.upper
    assert 0.9 < inside / 400 < 0.99


def test_one_who_told_many_counts_as_a_few() -> None:
    right_n = np.array([1.0] * 90 + [0.0] * 10)
    people = ["one"] * 90 + [f"user-{n}" for n in range(10)]
    assert proportion(right_n, raters_of(people, 10)).value == pytest.approx(0.5)
    assert proportion(right_n, raters_of(people, 1000)).value == pytest.approx(0.9)
