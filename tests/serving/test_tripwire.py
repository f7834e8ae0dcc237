"""The tripwire's chances against figures worked out by hand and by exact enumeration."""

from __future__ import annotations

import pytest

from serving.tripwire import trips, upper_tail


@pytest.mark.parametrize(
    ("least", "trials", "share", "chance"),
    [
        (3, 3, 0.05, 1.25e-4),
        (3, 3, 0.5, 0.125),
        (3, 4, 0.05, 4 * 0.05**3 * 0.95 + 0.05**4),
        (10, 10, 0.5, 0.5**10),
        (1, 2, 0.25, 0.4375),
        (0, 5, 0.1, 1.0),
        (1, 5, 0.0, 0.0),
        (6, 5, 0.9, 0.0),
        (500_000, 1_000_000, 0.5, 0.5003989422),
    ],
)
def test_the_tail_is_that_of_the_binomial(
    least: int, trials: int, share: float, chance: float
) -> None:
    assert upper_tail(least, trials, share) == pytest.approx(chance, rel=1e-6)


@pytest.mark.parametrize(
    ("candidate", "stable", "share", "harm"),
    [
        (3, 0, 0.01, True),
        (3, 0, 0.05, True),
        (3, 0, 0.1, True),
        (2, 0, 0.01, False),  # fewer than asked for
        (4, 0, 0.25, False),
        (5, 0, 0.25, True),
        (3, 0, 0.5, False),
        (9, 0, 0.5, False),
        (10, 0, 0.5, True),
        (3, 1, 0.05, True),
        (3, 2, 0.05, False),
        (40, 1, 0.05, True),  # one finding in stable does not disarm it
        (40, 760, 0.05, False),
        (40, 40, 0.5, False),
    ],
)
def test_it_trips_on_what_the_share_does_not_explain(
    candidate: int, stable: int, share: float, harm: bool
) -> None:
    assert trips(candidate, stable, share, 3) == harm


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5])
def test_findings_that_hit_both_alike_rarely_trip_it_although_it_looks_after_each(
    share: float,
) -> None:
    """The exact chance over all ways in which 100 users fall, as a walk that stops at a trip."""
    alive, tripped = {0: 1.0}, 0.0
    for users in range(1, 101):
        after: dict[int, float] = {}
        for canary, chance in alive.items():
            for more, part in ((0, 1.0 - share), (1, share)):
                after[canary + more] = after.get(canary + more, 0.0) + chance * part
        over = [canary for canary in after if trips(canary, users - canary, share, 3)]
        tripped += sum(after.pop(canary) for canary in over)
        alive = after
    assert 0.0 < tripped < 0.01
