"""How much a batch counts: as much as it is full, and as many users as speak in it."""

from __future__ import annotations

from collections import defaultdict

import pytest
from msgspec.structs import replace

from contracts.settings import Settings
from learner.adapters import load_policy
from learner.advantage import breadth_of, observe_costs
from learner.experience import experience_of
from learner.micro_batch import MicroBatch
from learner.train_state import new_train_state
from tests.learner.learning import Learning, MakeSample


def test_a_batch_that_is_not_full_teaches_by_as_much_as_it_is(
    settings: Settings, make_sample: MakeSample
) -> None:
    """One rating among silent answers would else move the weights as a whole batch does."""
    coefficients = {}
    for count in (8, 2):
        found = Learning(settings, make_sample)
        found.take(*[0] * count)
        coefficients[count] = [one.weight for one in found.progress.taught.values()]
    assert sum(coefficients[8]) == pytest.approx(1.0)
    assert sum(coefficients[2]) == pytest.approx(0.25)


def test_steps_of_batches_that_are_not_full_are_as_much_shorter(
    settings: Settings, make_sample: MakeSample
) -> None:
    """AdamW divides by what gradients usually are, so a small loss alone is no small step."""
    moved = {}
    for count in (8, 1):
        found = Learning(settings, make_sample)
        before = {name: one.clone() for name, one in found.state.policy.adapters().items()}
        for _ in range(4):
            found.take(*[0] * count)
        after = found.state.policy.adapters()
        moved[count] = sum(
            float((after[name] - one).detach().abs().sum()) for name, one in before.items()
        )
    assert 0.0 < moved[1] / moved[8] < 0.25


def test_an_account_that_fills_whole_batches_has_the_vote_of_few(
    settings: Settings, make_sample: MakeSample
) -> None:
    crowd = [f"u{n}" for n in range(40)]
    loud = ["loud"] * 8
    found = Learning(settings, make_sample)
    for start in range(0, 40, 8):
        found.take(*[0] * 8, users=crowd[start : start + 8])
    for _ in range(5):
        found.take(*[0] * 8, users=loud)
    of_user = defaultdict[str, float](float)
    for decision_id, taught in found.progress.taught.items():
        of_user[found.users[decision_id]] += taught.weight
    assert of_user["u0"] < of_user["loud"] < 4.0 * of_user["u0"]


def test_fewer_users_than_usual_move_the_price_by_as_much_less(
    settings: Settings, make_sample: MakeSample
) -> None:
    raters = [*(f"u{n}" for n in range(56)), *["loud"] * 8]
    loud = [experience_of(make_sample(n, user_id="loud", violation=True)) for n in range(8)]
    breadth = breadth_of(loud, raters)
    assert breadth == pytest.approx(2 / 8 * 64 / 57)
    assert breadth_of([replace(one, user_id=f"u{n}") for n, one in enumerate(loud)], raters) == 1.0

    state = new_train_state(load_policy(settings), settings.learner)
    start = state.multiplier
    observe_costs(state, MicroBatch(fresh=tuple(loud), breadth=breadth), settings.learner)
    rule = settings.learner.constraint
    assert state.multiplier - start == pytest.approx(breadth * rule.rate * (1.0 - rule.aim))
