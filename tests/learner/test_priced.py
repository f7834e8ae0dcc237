"""An answer that broke a rule teaches that, though nobody said anything about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

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
from learner.losses import push
from learner.objective import bounds_of
from learner.progress import Beside, Progress, advance
from learner.revision import debts, retract, revise
from learner.reward_model import load_reward_model
from learner.scoring import score
from learner.telemetry import release_figures
from learner.train_state import TrainState, new_train_state
from tests.learner.small_reward_model import small_reward_model

MakeSample = Callable[..., Sample]
PEOPLE = [name for name in (f"u{n}" for n in range(99)) if not is_judge("assistant", name, 0.2)]
PRICE = Constraint(limit=0.1, multiplier=2.0, rate=1.0)


@pytest.fixture
def priced(settings: Settings) -> Settings:
    return _with(settings, constraint=PRICE)


def _fresh(make_sample: MakeSample, count: int = 8) -> list[Experience]:
    samples = [make_sample(n, user_id=PEOPLE[n], correction=None) for n in range(count)]
    return [experience_of(sample, offset=n) for n, sample in enumerate(samples)]


def _silent(make_sample: MakeSample, number: int, **changes: object) -> Experience:
    """The experience of a decision that nobody said anything about."""
    said: dict[str, object] = {"status": "censored", "reward": 0.0, "correction": None}
    who = {"id": f"silent-{number}", "user_id": PEOPLE[number % len(PEOPLE)]}
    return experience_of(make_sample(number, **{**said, **who, **changes}), offset=number)


def _start(settings: Settings) -> tuple[TrainState, Progress]:
    train = new_train_state(load_policy(settings), settings.learner)
    return train, Progress(policy="assistant", base=train.policy.base)


def _with(settings: Settings, **changes: object) -> Settings:
    learner = msgspec.structs.replace(settings.learner, **changes)
    return msgspec.structs.replace(settings, learner=learner)


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
    off = _with(priced, constraint=Constraint(mode="off"))
    assert impute(broken, None, off) == broken


def test_who_breaks_a_rule_all_day_leaves_room_for_others(
    priced: Settings, make_sample: MakeSample
) -> None:
    most = priced.learner.batch_samples
    once = _silent(make_sample, 1, violation=True)
    often = [
        _silent(make_sample, 20 + n, violation=True, user_id=PEOPLE[2]) for n in range(2 * most)
    ]
    found = impute([once, *often], None, priced)
    assert [bool(e.imputed) for e in found] == [True, *[False] * (most + 1), *[True] * (most - 1)]


@pytest.mark.parametrize("loss", ["ppo", "topr", "awr", "kto"])
def test_it_becomes_less_likely_and_the_baseline_learns_nothing_of_it(
    priced: Settings, make_sample: MakeSample, loss: str
) -> None:
    priced = _with(priced, loss=loss)
    fresh = _fresh(make_sample)
    [broken] = impute([_silent(make_sample, 20, violation=True)], None, priced)
    train, before = _start(priced)
    alone, _ = _start(priced)
    after = advance(train, before, fresh, priced, Beside(silent=[broken]))
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
    assert (after.priced, after.imputed, after.unrewarded) == (1, 0, 0)
    assert after.samples == len(fresh)


@pytest.mark.parametrize("times", [1, 50])
def test_silent_users_move_the_price_like_others_however_much_they_ask(
    priced: Settings, make_sample: MakeSample, times: int
) -> None:
    """Eight who rated broke no rule, two of the four silent ones did: two of twelve."""
    silent = [
        _silent(make_sample, 20 + 50 * n + m, user_id=PEOPLE[20 + n], violation=n < 2)
        for n in range(4)
        for m in range(times if n == 0 else 1)
    ]
    judges = [_silent(make_sample, 300 + n, user_id="user-4", violation=True) for n in range(9)]
    given = impute([*silent, *judges], None, priced)
    train, before = _start(priced)
    after = advance(train, before, _fresh(make_sample), priced, Beside(silent=given))
    assert after.stats.cost_mean == pytest.approx(2 / 12)
    assert after.multiplier == pytest.approx(PRICE.multiplier + 2 / 12 - PRICE.aim)
    taught = after.taught
    rated = sum(taught[e.decision_id].weight for e in _fresh(make_sample))
    broken = sum(taught[e.decision_id].weight for e in given if e.imputed)
    assert broken == pytest.approx(rated * 2 / 8)


def test_silent_violations_move_the_price_where_nobody_rated_anything(
    priced: Settings, make_sample: MakeSample
) -> None:
    """One of three users breaks a rule; the weights and all that is owed stay as they are."""
    silent = [
        _silent(make_sample, 20 + n, user_id=PEOPLE[20 + n], violation=n == 0) for n in range(3)
    ]
    judges = [_silent(make_sample, 300 + n, user_id="user-4", violation=True) for n in range(9)]
    train, before = _start(priced)
    adapters = {name: one.detach().clone() for name, one in train.policy.adapters().items()}
    after = advance(train, before, [], priced, Beside(silent=[*silent, *judges]))
    assert after.stats.cost_mean == pytest.approx(1 / 3)
    moved = PRICE.multiplier + 1 / 3 - PRICE.aim
    assert after.multiplier == after.stats.multiplier == pytest.approx(moved)
    assert all(torch.equal(one, adapters[name]) for name, one in train.policy.adapters().items())
    assert train.optimizer.state == {}
    assert after.ledger == ()  # no version will have the lines
    assert (after.unrewarded, after.priced, after.replay) == (12, 0, before.replay)


def test_the_slow_start_begins_with_the_first_batch_that_teaches(
    priced: Settings, make_sample: MakeSample
) -> None:
    settings = _with(priced, warm_up_batches=4)
    train, progress = _start(settings)
    for n in range(3):
        silent = Beside(silent=[_silent(make_sample, 20 + n, violation=True)])
        progress = advance(train, progress, [], settings, silent)
    paces = []
    for n in range(5):
        fresh = [
            msgspec.structs.replace(e, decision_id=f"{e.decision_id}/{n}")
            for e in _fresh(make_sample)
        ]
        progress = advance(train, progress, fresh, settings)
        paces.append(train.optimizer.param_groups[0]["lr"] / settings.learner.learning_rate)
    assert paces == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_where_nothing_was_seen_no_mean_is_told(priced: Settings, make_sample: MakeSample) -> None:
    judge = _silent(make_sample, 300, user_id="user-4", violation=True)
    train, before = _start(priced)
    stats = advance(train, before, [], priced, Beside(silent=[judge])).stats
    assert (stats.reward_mean, stats.cost_mean) == (None, None)
    assert release_figures(stats) == {"multiplier": PRICE.multiplier}
    told = release_figures(advance(train, before, _fresh(make_sample), priced).stats)
    assert told.keys() > {"reward_mean", "cost_mean", "policy_loss", "kl", "multiplier"}


def test_while_violations_have_no_price_they_teach_nothing(
    priced: Settings, make_sample: MakeSample
) -> None:
    free = _with(priced, constraint=Constraint(limit=0.9, multiplier=0.0, rate=1.0))
    given = impute([_silent(make_sample, 20, violation=True)], None, free)
    assert given[0].imputed
    train, before = _start(free)
    alone, _ = _start(free)
    after = advance(train, before, _fresh(make_sample), free, Beside(silent=given))
    without = advance(alone, before, _fresh(make_sample), free)
    assert _line(after, "silent-20").outcome == "no-reward"
    assert (after.priced, after.unrewarded, after.stats.dropped) == (0, 1, {})
    assert after.taught == without.taught


def test_what_cannot_be_scored_has_no_reward_and_a_model_says_nothing_of_violations(
    priced: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    unknown = _silent(make_sample, 20, violation=True, token_ids=(99_999,))
    train, before = _start(priced)
    given = impute([unknown], None, priced)
    after = advance(train, before, _fresh(make_sample), priced, Beside(silent=given))
    line = _line(after, "silent-20")
    assert (line.outcome, line.coefficient) == ("no-reward", 0.0)
    model = load_reward_model(priced, small_reward_model(priced, make_sample, tmp_path / "models"))
    pair = [_silent(make_sample, 30, violation=True), _silent(make_sample, 31)]
    assert [e.imputed for e in impute(pair, model, priced)] == [BASELINE, model.version]


def test_no_model_is_asked_about_the_violations_that_are_too_many(
    priced: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    model = load_reward_model(priced, small_reward_model(priced, make_sample, tmp_path / "models"))
    most = priced.learner.batch_samples
    broken = [
        _silent(make_sample, n, violation=True, user_id=PEOPLE[2]) for n in range(2 * most + 1)
    ]
    given = [*broken, _silent(make_sample, 40)]
    found = [e.imputed for e in impute(given, model, priced)]
    assert found == [*[""] * (most + 1), *[BASELINE] * most, model.version]
    off = _with(priced, constraint=Constraint(mode="off"))
    found = [e.imputed for e in impute(given, model, off)]
    assert found == [*[""] * len(broken), model.version]


@pytest.mark.parametrize("loss", ["ppo", "awr", "likelihood"])
def test_a_reward_that_comes_later_teaches_what_it_would_have_besides_the_violation(
    priced: Settings, make_sample: MakeSample, loss: str
) -> None:
    """Also where the violation was taught by another loss, for the one that is set cannot."""
    priced = _with(priced, loss=loss)
    [broken] = impute([_silent(make_sample, 20, violation=True)], None, priced)
    train, before = _start(priced)
    after = advance(train, before, _fresh(make_sample), priced, Beside(silent=[broken]))
    taught = after.taught[broken.decision_id]
    assert taught.share == 1.0
    assert taught.curve.plain == float(loss == "awr")
    told = msgspec.structs.replace(broken, reward=1.0, imputed="", censored=False)
    by_loss = partial(push, loss, bounds_of(priced.learner))
    [debt] = debts(revise(after.taught, told, by_loss), [told])
    curve = taught.curve
    wanted = taught.weight * by_loss(curve.advantage(told.reward), curve.odds)
    assert taught.coefficient + debt.coefficient == pytest.approx(wanted)
    assert debt.coefficient > 0.0

    memory = revise(after.taught, told, by_loss)
    for number, reward in enumerate((1.0, 1.0, 0.0, 1.0)):  # said again, otherwise, taken back
        if number == 3:
            memory = retract(memory, told.decision_id)
        again = msgspec.structs.replace(told, sample_id=f"again-{number}", reward=reward)
        memory = revise(memory, again, by_loss)
        wanted = taught.weight * by_loss(curve.advantage(reward), curve.odds)
        assert memory[told.decision_id].wanted == pytest.approx(wanted)


def test_what_was_taken_from_a_silent_answer_is_not_kept_as_a_correction(
    priced: Settings, make_sample: MakeSample
) -> None:
    """Where `correction` is no signal, an answer that was only corrected is silent."""
    silent = msgspec.structs.replace(_silent(make_sample, 20), correction_ids=(11, 12, 3))
    train, before = _start(priced)
    after = advance(train, before, _fresh(make_sample), priced, Beside(silent=[silent]))
    assert _line(after, "silent-20").outcome == "no-reward"
    assert after.replay.corrections == ()
