"""An answer that broke a rule teaches that, though nobody said anything about it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import torch

from contracts.events import Sample
from contracts.judges import is_judge
from contracts.settings import Constraint, Settings
from learner.adapters import load_policy
from learner.experience import BASELINE, Experience, experience_of
from learner.imputation import impute
from learner.ledger import Outcome
from learner.progress import Progress, advance
from learner.revision import debts, revise
from learner.scoring import score
from learner.train_state import TrainState, new_train_state

MakeSample = Callable[..., Sample]
PEOPLE = [name for name in (f"u{n}" for n in range(99)) if not is_judge("assistant", name, 0.2)]
PRICE = Constraint(limit=0.1, multiplier=2.0, rate=1.0)


@pytest.fixture
def priced(settings: Settings) -> Settings:
    learner = msgspec.structs.replace(settings.learner, constraint=PRICE)
    return msgspec.structs.replace(settings, learner=learner)


def _fresh(make_sample: MakeSample, count: int = 8) -> list[Experience]:
    samples = [make_sample(n, user_id=PEOPLE[n], correction=None) for n in range(count)]
    return [experience_of(sample, offset=n) for n, sample in enumerate(samples)]


def _silent(make_sample: MakeSample, number: int, **changes: object) -> Experience:
    """The experience of a decision that nobody said anything about."""
    said: dict[str, object] = {"status": "censored", "reward": 0.0, "correction": None}
    who = {"id": f"silent-{number}", "user_id": PEOPLE[number]}
    return experience_of(make_sample(number, **{**said, **who, **changes}), offset=number)


def _start(settings: Settings) -> tuple[TrainState, Progress]:
    train = new_train_state(load_policy(settings), settings.learner)
    return train, Progress(policy="assistant", base=train.policy.base)


def _line(progress: Progress, sample_id: str) -> Outcome:
    [line] = [line for line in progress.ledger if line.sample_id == sample_id]
    return line


def test_the_newest_silent_violations_get_what_the_baseline_expects_and_nothing_else_does(
    priced: Settings, make_sample: MakeSample
) -> None:
    most = priced.learner.batch_samples
    broken = [_silent(make_sample, 20 + n, violation=True) for n in range(most + 1)]
    harmless = _silent(make_sample, 40)
    judge = _silent(make_sample, 41, violation=True, user_id="user-4")
    observed = experience_of(make_sample(42, violation=True), offset=42)
    found = impute([*broken, harmless, judge, observed], None, priced)
    assert [e.imputed for e in found] == ["", *[BASELINE] * most, "", "", ""]
    assert [e.sample_id for e in found[:-3]] == [e.sample_id for e in broken]
    off = msgspec.structs.replace(priced.learner, constraint=Constraint(mode="off"))
    without = msgspec.structs.replace(priced, learner=off)
    assert impute(broken, None, without) == broken


def test_it_becomes_less_likely_and_the_baseline_learns_nothing_of_it(
    priced: Settings, make_sample: MakeSample
) -> None:
    fresh = _fresh(make_sample)
    [broken] = impute([_silent(make_sample, 20, violation=True)], None, priced)
    train, before = _start(priced)
    alone, _ = _start(priced)
    after = advance(train, before, fresh, priced, unrewarded=[broken])
    advance(alone, before, fresh, priced)
    with_it, without_it = (
        sum(score(one.policy, one.anchor, [broken], priced.learner.bucket_tokens)[0].prox)
        for one in (train, alone)
    )
    assert with_it < without_it
    for mine, other in zip(train.value.parameters(), alone.value.parameters(), strict=True):
        assert torch.equal(mine, other)
    line = _line(after, "silent-20")
    assert (line.outcome, line.reward_model, line.violation) == ("priced", "", True)
    assert line.coefficient < 0.0
    assert (after.imputed, after.unrewarded, after.samples) == (1, 0, len(fresh))


def test_silent_decisions_move_the_price_by_their_number(
    priced: Settings, make_sample: MakeSample
) -> None:
    """Eight rated ones are harmless, two of the four silent ones are not: two of twelve."""
    silent = [_silent(make_sample, 20 + n, violation=n < 2) for n in range(4)]
    train, before = _start(priced)
    after = advance(
        train, before, _fresh(make_sample), priced, unrewarded=impute(silent, None, priced)
    )
    assert after.stats.cost_mean == pytest.approx(2 / 12)
    assert after.multiplier == pytest.approx(PRICE.multiplier + 2 / 12 - PRICE.limit)


def test_a_reward_that_comes_later_teaches_what_it_would_have_besides_the_violation(
    priced: Settings, make_sample: MakeSample
) -> None:
    [broken] = impute([_silent(make_sample, 20, violation=True)], None, priced)
    train, before = _start(priced)
    after = advance(train, before, _fresh(make_sample), priced, unrewarded=[broken])
    taught = after.taught[broken.decision_id]
    assert taught.share == 1.0
    told = msgspec.structs.replace(broken, reward=1.0, imputed="", censored=False)
    [debt] = debts(revise(after.taught, told), [told])
    assert debt.coefficient == pytest.approx((told.reward - taught.reward) * taught.gain)
    assert taught.coefficient + debt.coefficient > taught.coefficient
