"""Answers without a signal teach what a reward model expects, at a part of the weight; observed
rewards are never touched."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from math import isfinite
from pathlib import Path
from threading import Event

import msgspec
import pytest
import torch

from console.settling import TAKEN
from contracts.broker import read_to_end
from contracts.clock import ManualClock
from contracts.errors import SettingsError
from contracts.events import Assignment, Sample
from contracts.ids import NewId
from contracts.judges import is_judge
from contracts.manifest import read_manifest
from contracts.settings import Kafka, Settings
from contracts.topics import SAMPLES
from learner import checkpoint
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.experience import Experience, experience_of
from learner.imputation import impute
from learner.ledger import Outcome
from learner.loop import Learner
from learner.losses import Bounds, push
from learner.outlet import Outlet
from learner.progress import Beside, Progress, advance
from learner.pulse import Pulse
from learner.revision import Lesson, debts, remember, revise
from learner.reward_model import RewardModel, load_reward_model
from learner.train_state import TrainState, new_train_state
from learner.version_line import Link, settings_of
from tests.learner.reading import read_on
from tests.learner.small_reward_model import small_reward_model
from tests.topic_log import publish

MakeSample = Callable[..., Sample]
PPO = partial(push, "ppo", Bounds())
PEOPLE = [name for name in (f"u{n}" for n in range(99)) if not is_judge("assistant", name, 0.2)]


@pytest.fixture
def directory(settings: Settings, make_sample: MakeSample, tmp_path: Path) -> Path:
    return small_reward_model(settings, make_sample, tmp_path / "models")


@pytest.fixture
def model(settings: Settings, directory: Path) -> RewardModel:
    return load_reward_model(settings, directory)


def _silent(make_sample: MakeSample, number: int, **changes: object) -> Sample:
    """The sample that streams send of a decision that nobody said anything about."""
    fields: dict[str, object] = {"status": "censored", "reward": 0.0, "correction": None}
    return make_sample(number, **{**fields, "id": f"silent-{number}", **changes})


def _experiences(samples: list[Sample]) -> list[Experience]:
    return [experience_of(sample, offset=n) for n, sample in enumerate(samples)]


def test_a_silent_answer_gets_the_conservative_reward_and_an_observed_one_is_never_touched(
    settings: Settings, model: RewardModel, make_sample: MakeSample
) -> None:
    silent = _experiences([_silent(make_sample, n) for n in range(5)])
    observed = _experiences([make_sample(n) for n in range(5, 9)])
    found = impute([*silent, *observed], model, settings)
    assert found[5:] == observed
    expected = model.score([TokenSequence(e.prompt_ids, e.token_ids) for e in silent])
    assert [e.reward for e in found[:5]] == [one.conservative for one in expected]
    assert {e.imputed for e in found[:5]} == {model.version}
    assert all(one.conservative < one.mean for one in expected)


def test_without_a_model_or_weight_for_judges_and_for_unknown_tokens_nothing_is_imputed(
    settings: Settings, model: RewardModel, make_sample: MakeSample
) -> None:
    silent = _experiences([_silent(make_sample, n) for n in range(3)])
    assert impute(silent, None, settings) == silent
    learner = msgspec.structs.replace(settings.learner, imputed_weight=0.0)
    assert impute(silent, model, msgspec.structs.replace(settings, learner=learner)) == silent
    odd = _experiences(
        [
            _silent(make_sample, 4, user_id="user-4"),  # judges
            _silent(make_sample, 5, token_ids=(99,)),
            _silent(make_sample, 6, prompt_token_ids=()),
        ]
    )
    assert impute(odd, model, settings) == odd


def test_no_more_are_imputed_than_a_batch_has_and_those_are_the_newest(
    settings: Settings, model: RewardModel, make_sample: MakeSample
) -> None:
    silent = _experiences([_silent(make_sample, n) for n in range(20)])
    found = impute(silent, model, settings)
    assert [bool(e.imputed) for e in found] == [False] * 12 + [True] * 8


def test_users_who_say_much_leave_the_others_their_place(
    settings: Settings, model: RewardModel, make_sample: MakeSample
) -> None:
    names = [PEOPLE[0]] * 3 + [PEOPLE[1]] * 2 + [PEOPLE[2]] * 20
    silent = _experiences([_silent(make_sample, n, user_id=u) for n, u in enumerate(names)])
    found = impute(silent, model, settings)
    assert [n for n, e in enumerate(found) if e.imputed] == [0, 1, 2, 3, 4, 22, 23, 24]


def test_a_score_that_is_no_number_imputes_nothing(
    settings: Settings, model: RewardModel, make_sample: MakeSample
) -> None:
    silent = _experiences([_silent(make_sample, n) for n in range(3)])
    calibration = msgspec.structs.replace(model.card.calibration, slope=float("nan"))
    broken = copy(model)
    broken.card = msgspec.structs.replace(model.card, calibration=calibration)
    answers = [TokenSequence(e.prompt_ids, e.token_ids) for e in silent]
    assert not any(isfinite(one.conservative) for one in broken.score(answers))
    assert impute(silent, broken, settings) == silent


def _start(settings: Settings) -> tuple[TrainState, Progress]:
    train = new_train_state(load_policy(settings), settings.learner)
    return train, Progress(policy="assistant", base=train.policy.base)


def test_imputed_answers_teach_at_a_part_of_the_weight_and_leave_the_baseline_alone(
    settings: Settings, model: RewardModel, make_sample: MakeSample
) -> None:
    fresh = _experiences([make_sample(n, user_id=PEOPLE[n]) for n in range(8)])
    silent = _experiences([_silent(make_sample, n, user_id=PEOPLE[n]) for n in range(20, 24)])
    imputed = impute(silent, model, settings)
    train, before = _start(settings)
    after = advance(train, before, fresh, settings, Beside(silent=imputed))
    plain, _ = _start(settings)
    without = advance(plain, before, fresh, settings, Beside(silent=silent))

    assert (after.imputed, after.unrewarded) == (4, 0)
    assert (without.imputed, without.unrewarded) == (0, 4)
    assert after.samples == without.samples == 8
    assert after.spread == without.spread
    for mine, other in zip(train.value.parameters(), plain.value.parameters(), strict=True):
        assert torch.equal(mine, other)
    moved = [
        not torch.equal(mine, other)
        for mine, other in zip(
            train.policy.adapters().values(), plain.policy.adapters().values(), strict=True
        )
    ]
    assert any(moved)
    # Nine weights in all: eight of one, and four of a quarter.
    ratios = {
        e.decision_id: after.taught[e.decision_id].weight / without.taught[e.decision_id].weight
        for e in fresh
    }
    assert list(ratios.values()) == pytest.approx([8.0 / 9.0] * 8)
    shares = {after.taught[e.decision_id].share for e in silent}
    assert shares == {0.25}
    gains = [after.taught[e.decision_id].weight for e in (*fresh, *silent)]
    assert gains[8:] == pytest.approx([gains[0] * 0.25] * 4)


def test_where_no_rated_answer_can_be_learned_from_the_imputed_ones_teach_nothing(
    settings: Settings, model: RewardModel, make_sample: MakeSample
) -> None:
    long = make_sample(0, user_id=PEOPLE[0], prompt_token_ids=(10,) * 80, correction=None)
    silent = _experiences([_silent(make_sample, n, user_id=PEOPLE[n]) for n in range(20, 24)])
    imputed = impute(silent, model, settings)
    train, before = _start(settings)
    start = {name: one.detach().clone() for name, one in train.policy.adapters().items()}
    after = advance(train, before, _experiences([long]), settings, Beside(silent=imputed))

    outcomes = [one.outcome for one in after.ledger]
    assert sorted(outcomes) == ["no-reward"] * 4 + ["too-long"]
    assert (after.imputed, after.unrewarded, len(after.taught)) == (0, 4, 0)
    for name, one in train.policy.adapters().items():
        assert torch.equal(one, start[name])


def test_people_who_never_rate_do_not_outweigh_those_who_rate_all_day(
    settings: Settings, model: RewardModel, make_sample: MakeSample
) -> None:
    fresh = _experiences([make_sample(n, user_id=PEOPLE[n]) for n in range(8)])
    quiet = [_silent(make_sample, n, user_id=PEOPLE[n]) for n in range(20, 28)]
    imputed = impute(_experiences(quiet), model, settings)
    train, before = _start(settings)
    before = msgspec.structs.replace(before, raters=tuple(PEOPLE[:8] * 50))
    after = advance(train, before, fresh, settings, Beside(silent=imputed))
    gains = [after.taught[e.decision_id].weight for e in (*fresh, *imputed)]
    assert sum(gains[8:]) == pytest.approx(0.25 * sum(gains[:8]))
    # At its full weight each would be the first of its user, and count like 51 of the others.
    share = after.taught[imputed[0].decision_id].share
    assert share == pytest.approx(0.25 / 51)
    assert gains[8] / share == pytest.approx(51 * gains[0])


def test_the_ledger_says_which_model_imputed_and_what_was_left_without_a_reward(
    settings: Settings, model: RewardModel, make_sample: MakeSample
) -> None:
    fresh = _experiences([make_sample(n) for n in range(8)])
    silent = _experiences([_silent(make_sample, n) for n in range(20, 31)])
    train, before = _start(settings)
    after = advance(train, before, fresh, settings, Beside(silent=impute(silent, model, settings)))
    lines = {line.sample_id: line for line in after.ledger}
    assert len(lines) == 19
    assert _count(after.ledger, "imputed", model.version) == 8
    assert _count(after.ledger, "no-reward", "") == 3
    assert _count(after.ledger, "used", "") == 8
    newest = lines["silent-30"]
    assert newest.reward == impute(silent, model, settings)[-1].reward
    assert newest.coefficient != 0.0
    assert lines["silent-20"].coefficient == 0.0
    assert {e.sample_id for e in after.replay.recent} == {e.sample_id for e in fresh}


def _count(ledger: tuple[Outcome, ...], outcome: str, version: str) -> int:
    return sum(line.outcome == outcome and line.reward_model == version for line in ledger)


def test_an_observed_reward_takes_the_place_of_an_imputed_one_at_its_full_weight(
    make_sample: MakeSample,
) -> None:
    """As if it had been taught at once: weight .2, of which an imputed lesson had a quarter."""
    baseline, scale, weight, guess = 0.3, 0.5, 0.2, -0.1
    one = experience_of(make_sample(1, reward=1.0))
    coefficient = 0.25 * weight * (guess - baseline) / scale
    lesson = Lesson(one.decision_id, guess, coefficient, 0.25 * weight / scale, share=0.25)
    taught = remember({}, [lesson], 10)
    assert debts(taught, [one]) == ()
    memory = revise(taught, one, PPO)
    [debt] = debts(memory, [one])
    wanted = weight * (one.reward - baseline) / scale
    assert coefficient + debt.coefficient == pytest.approx(wanted)
    again = revise(memory, msgspec.structs.replace(one, reward=-1.0), PPO)
    change = debts(again, [one])[0].coefficient - debt.coefficient
    assert change == pytest.approx(-2.0 * weight / scale)


# --- in the learner's loop -----------------------------------------------------------------------


OpenLearner = Callable[..., Learner]


@pytest.fixture
def configured(settings: Settings, kafka: Kafka, directory: Path) -> Settings:
    learner = msgspec.structs.replace(settings.learner, reward_model=str(directory))
    return msgspec.structs.replace(settings, kafka=kafka, learner=learner)


@pytest.fixture
def open_learner(clock: ManualClock, new_id: NewId) -> OpenLearner:
    def make(settings: Settings) -> Learner:
        outlet = Outlet(settings.kafka, clock, new_id, Event())
        return Learner(
            settings,
            clock,
            outlet,
            Pulse(settings, clock, "learner"),
            lambda found: [None] * len(found),
        )

    return make


def _outcomes(learner: Learner) -> dict[str, str]:
    return {line.sample_id: line.outcome for line in learner.progress.ledger}


def test_a_reward_that_comes_before_the_batch_is_learned_replaces_the_silent_sample(
    configured: Settings, kafka: Kafka, make_sample: MakeSample, open_learner: OpenLearner
) -> None:
    silent = [_silent(make_sample, n) for n in range(3)]
    told = make_sample(0, id="told", revision=1, reward=-1.0)
    late = _silent(make_sample, 7, id="silent-and-late")
    rest = [make_sample(n) for n in range(10, 16)]
    publish(kafka, SAMPLES, *silent, told, make_sample(7), late, *rest)
    learner = read_on(open_learner(configured))
    assert learner.progress.batches == 1
    outcomes = _outcomes(learner)
    assert outcomes["silent-0"] == "superseded"
    assert outcomes["told"] == "used"
    assert outcomes["silent-and-late"] == "superseded"  # what was observed stands
    assert outcomes["silent-1"] == outcomes["silent-2"] == "imputed"
    learned = {e.decision_id: e.reward for e in learner.progress.replay.recent}
    assert learned[told.decision_id] == -1.0
    assert learned[late.decision_id] == make_sample(7).reward


def test_each_sample_read_is_counted_once_before_it_is_learned_and_after(
    configured: Settings, kafka: Kafka, make_sample: MakeSample, open_learner: OpenLearner
) -> None:
    learner = open_learner(configured)
    other = Assignment(policy="another", policy_version="base")
    publish(
        kafka,
        SAMPLES,
        _silent(make_sample, 0),
        _silent(make_sample, 1, violation=True),
        make_sample(2),
        make_sample(2, id="newer", revision=1),
        make_sample(3, assignment=other),
        *(make_sample(n) for n in range(10, 17)),
    )
    for read, record in enumerate(read_to_end(kafka, (SAMPLES,), "test-counts"), start=1):
        learner.take(record)
        learner.show(0)
        taken = sum(learner.pulse.counts[name] for name in TAKEN)
        assert taken + len(learner.intake.pending) == read
    learner.outlet.close()
    assert learner.progress.batches == 1


def test_a_reward_that_comes_later_is_a_revision_of_what_was_imputed(
    configured: Settings, kafka: Kafka, make_sample: MakeSample, open_learner: OpenLearner
) -> None:
    section = msgspec.structs.replace(configured.learner, publish_every=9)  # one ledger for all
    configured = msgspec.structs.replace(configured, learner=section)
    silent = _silent(make_sample, 0)
    publish(kafka, SAMPLES, silent, *(make_sample(n) for n in range(10, 18)))
    learner = read_on(open_learner(configured))
    assert _outcomes(learner)["silent-0"] == "imputed"
    before = learner.progress.taught[silent.decision_id]
    assert 0.0 < before.share <= 0.25

    told = make_sample(0, id="told", revision=1, reward=-1.0)
    again = _silent(make_sample, 0, id="silent-again", revision=2)
    publish(kafka, SAMPLES, told, again, *(make_sample(n) for n in range(20, 27)))
    learner = read_on(open_learner(configured))
    outcomes = _outcomes(learner)
    assert (outcomes["told"], outcomes["silent-again"]) == ("revised", "superseded")
    after = learner.progress.taught[silent.decision_id]
    assert (after.reward, after.share) == (-1.0, 1.0)
    assert after.weight == pytest.approx(before.weight / before.share)


def test_without_a_reward_model_silent_samples_stand_in_the_ledger_and_teach_nothing(
    settings: Settings, kafka: Kafka, make_sample: MakeSample, open_learner: OpenLearner
) -> None:
    settings = msgspec.structs.replace(settings, kafka=kafka)
    silent = [_silent(make_sample, n) for n in range(3)]
    told = [make_sample(n, correction=None) for n in range(10, 18)]
    publish(kafka, SAMPLES, *silent, *told)
    learner = read_on(open_learner(settings))
    outcomes = _outcomes(learner)
    assert {outcomes[sample.id] for sample in silent} == {"no-reward"}
    fresh = _experiences(told)
    alone, before = _start(settings)
    advance(alone, before, fresh, settings)
    for mine, other in zip(
        learner.train.policy.adapters().values(), alone.policy.adapters().values(), strict=True
    ):
        assert torch.equal(mine, other)


def test_a_restart_in_the_middle_imputes_the_same_and_the_version_names_the_model(
    configured: Settings,
    kafka: Kafka,
    directory: Path,
    make_sample: MakeSample,
    open_learner: OpenLearner,
    tmp_path: Path,
) -> None:
    samples = [
        _silent(make_sample, n) if n % 3 == 0 else make_sample(n, correction=None)
        for n in range(30)
    ]
    publish(kafka, SAMPLES, *samples[:17])
    interrupted = read_on(open_learner(configured))
    assert interrupted.intake.pending
    publish(kafka, SAMPLES, *samples[17:])
    interrupted = read_on(open_learner(configured))
    elsewhere = msgspec.structs.replace(configured, state_dir=tmp_path / "elsewhere")
    (elsewhere.state_dir / "keys").parent.mkdir(parents=True)
    (elsewhere.state_dir / "keys").symlink_to(configured.state_dir / "keys")
    whole = read_on(open_learner(elsewhere))

    assert whole.progress.batches == interrupted.progress.batches == 2
    assert whole.progress.imputed == interrupted.progress.imputed > 0
    places = [checkpoint.place(one.root, one.progress) for one in (whole, interrupted)]
    names = [(place / checkpoint.TENSORS).read_bytes() for place in places]
    assert names[0] == names[1]
    assert [*whole.progress.versions] == [*interrupted.progress.versions] != []
    [version] = whole.progress.versions
    place = configured.state_dir / "versions" / "assistant" / version
    _, manifest = read_manifest(place)
    assert manifest.config["reward_model"] == directory.name
    assert "reward_model" not in manifest.config["learner"]

    link = Link(version, place, manifest)
    assert settings_of(configured, link) == configured
    learner = msgspec.structs.replace(configured.learner, reward_model="")
    with pytest.raises(SettingsError, match=f"with reward model {directory.name[:12]}"):
        settings_of(msgspec.structs.replace(configured, learner=learner), link)
