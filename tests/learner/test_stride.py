"""How much a batch counts: as much as it is full, and as many users as speak in it."""

from __future__ import annotations

from collections import defaultdict

import pytest
from msgspec.structs import replace
from torch import Tensor

from contracts.settings import Settings
from learner.adapters import load_policy
from learner.advantage import breadth_of, observe_costs
from learner.experience import experience_of
from learner.micro_batch import MicroBatch
from learner.train_state import TrainState, new_train_state
from learner.update import update
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
        before = _weights_of(found.state)
        for _ in range(4):
            found.take(*[0] * count)
        after = _weights_of(found.state)
        moved[count] = sum(float((after[name] - one).abs().sum()) for name, one in before.items())
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

    rule = settings.learner.constraint
    alone = MicroBatch(fresh=tuple(loud), breadth=breadth)
    assert _moved(settings, alone) == pytest.approx(breadth * rule.rate * (1.0 - rule.aim))
    others = [experience_of(make_sample(n, user_id=f"u{n}", violation=True)) for n in range(9, 12)]
    among = replace(alone, silent=tuple(replace(one, censored=True) for one in others))
    expected = (breadth + 3.0) / 4.0 * rule.rate * (1.0 - rule.aim)
    assert _moved(settings, among) == pytest.approx(expected)


def test_violations_that_the_monitor_alone_tells_of_count_among_the_silent(
    settings: Settings, make_sample: MakeSample
) -> None:
    """Beside the rated they would be a rate of violations among those who broke a rule."""
    rated = [experience_of(make_sample(n, user_id=f"r{n}")) for n in range(8)]
    silent = [
        replace(experience_of(make_sample(n, user_id=f"s{n % 10}")), censored=True)
        for n in range(10, 109)
    ]
    reported = experience_of(
        make_sample(109, user_id="s9", violation=True, signals={"safety": -1.0, "cost": -0.1})
    )
    assert reported.unrated
    batch = MicroBatch(fresh=(*rated, reported), silent=tuple(silent))
    state = new_train_state(load_policy(settings), settings.learner)
    assert observe_costs(state, batch, settings.learner) == pytest.approx(1 / 18 / 10)

    spoken = replace(reported, unrated=False)
    assert not experience_of(make_sample(1, signals={"safety": -1.0, "rating": 0.5})).unrated
    assert not experience_of(make_sample(1, signals={})).unrated
    batch = MicroBatch(fresh=(*rated, spoken), silent=tuple(silent))
    assert observe_costs(state, batch, settings.learner) == pytest.approx(9 / 19 / 9)
    alone = MicroBatch(fresh=(*rated, reported))  # nothing silent was sent to weigh it among
    assert observe_costs(state, alone, settings.learner) == pytest.approx(1 / 9)


def test_what_the_guard_kept_back_is_weighed_among_answers_that_the_default_rewards(
    settings: Settings, make_sample: MakeSample
) -> None:
    """They are the silence of the same users, and alone would be nothing but violations."""
    harmless = [
        experience_of(make_sample(n, user_id=f"u{n % 4}", status="default")) for n in range(64)
    ]
    blocked = [
        replace(experience_of(make_sample(64 + n, user_id=f"u{n}", violation=True)), censored=True)
        for n in range(4)
    ]
    batch = MicroBatch(fresh=tuple(harmless), silent=tuple(blocked))
    state = new_train_state(load_policy(settings), settings.learner)
    assert observe_costs(state, batch, settings.learner) == pytest.approx(4 / 68)


def _moved(settings: Settings, batch: MicroBatch) -> float:
    """Return how far a batch moves the price."""
    state = new_train_state(load_policy(settings), settings.learner)
    start = state.multiplier
    observe_costs(state, batch, settings.learner)
    return state.multiplier - start


def test_a_batch_that_is_not_full_is_not_carried_into_the_next_by_momentum(
    settings: Settings, make_sample: MakeSample
) -> None:
    """What it says must not come to its full size with the steps of full ones after it."""
    config = replace(settings.learner, value_learning_rate=1e-12)
    apart = {}
    for fill in (1.0, 1.0 / 8.0):
        ends = []
        for reward in (1.0, -1.0):
            state = new_train_state(load_policy(settings), config)
            for turn in range(4):
                odd = turn == 1
                numbers = range(8 * turn, 8 * turn + 8)
                fresh = [experience_of(make_sample(n, correction=None)) for n in numbers]
                fresh = [replace(one, reward=reward) if odd else one for one in fresh]
                batch = MicroBatch(fresh=tuple(fresh), fill=fill if odd else 1.0)
                update(state, batch, config, 64)
            ends.append(_weights_of(state))
        apart[fill] = sum(float((ends[0][name] - one).abs().sum()) for name, one in ends[1].items())
    assert 0.0 < apart[1.0 / 8.0] < 0.5 * apart[1.0]


def _weights_of(state: TrainState) -> dict[str, Tensor]:
    """Return a copy of the adapters."""
    return {name: one.detach().clone() for name, one in state.policy.adapters().items()}
