"""A reward that changes corrects what the earlier one taught; one that is retracted undoes it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from contracts.events import Sample
from contracts.settings import Settings
from learner.adapters import load_policy
from learner.advantage import weigh
from learner.buckets import TokenSequence
from learner.experience import Experience, experience_of
from learner.ledger import WITHDRAWN
from learner.losses import Bounds, push
from learner.progress import Beside, Progress, advance
from learner.revision import (
    Curve,
    Lesson,
    Taught,
    debts,
    forgotten,
    remember,
    retract,
    revise,
    settle,
)
from learner.scoring import Scored, score
from learner.train_state import TrainState, new_train_state
from learner.value import Spread

MakeSample = Callable[..., Sample]
PROMPT, ANSWER = (10, 11, 12), (20, 3)
PPO = partial(push, "ppo", Bounds())
WARM_UP = 20
"""Batches before it begins: Adam's first steps are long whatever the gradient, and not undone."""


def _one(make_sample: MakeSample, number: int, **changes: object) -> Experience:
    return experience_of(make_sample(number, correction=None, **changes), offset=number)


def test_a_revision_owes_the_change_of_reward_times_what_a_unit_of_reward_taught(
    make_sample: MakeSample,
) -> None:
    one = _one(make_sample, 1, reward=-1.0)
    taught = remember({}, [Lesson(one.decision_id, 1.0, 0.05, 0.04)] * 3, 10)

    memory = revise(taught, one, PPO)

    [debt] = debts(memory, [one])
    assert debt.experience == one
    assert debt.coefficient == pytest.approx(-2.0 * 0.12)
    assert memory[one.decision_id].reward == -1.0


def test_a_retraction_owes_all_that_was_taught_and_a_second_one_no_more(
    make_sample: MakeSample,
) -> None:
    one = _one(make_sample, 1)
    taught = remember({}, [Lesson(one.decision_id, 1.0, 0.05, 0.04)] * 2, 10)

    once = retract(taught, one.decision_id)
    paid = remember(once, [Lesson(one.decision_id, 0.0, -0.1, 0.0, correction=True)], 10)

    [debt] = debts(once, [one])
    assert debt.coefficient == pytest.approx(-0.1)
    assert debts(paid, [one]) == debts(retract(paid, one.decision_id), [one]) == ()


def test_a_reward_after_a_retraction_is_taught_as_if_there_had_been_none(
    make_sample: MakeSample,
) -> None:
    one = _one(make_sample, 1, reward=-1.0)
    taught = remember({}, [Lesson(one.decision_id, 1.0, 0.05, 0.04)] * 3, 10)
    at_once = revise(taught, one, PPO)[one.decision_id]
    back = retract(taught, one.decision_id)
    paid = remember(back, [Lesson(one.decision_id, 0.0, -0.1, 0.0, correction=True)], 10)
    twice = retract(paid, one.decision_id)
    for memory in (back, paid, twice):
        after = revise(memory, one, PPO)[one.decision_id]
        assert (after.reward, after.wanted, after.weight) == (-1.0, at_once.wanted, at_once.weight)
        assert after.wanted == pytest.approx(0.15 - 2.0 * 0.12)
        assert debts(retract({one.decision_id: after}, one.decision_id), [one])


def test_what_was_taught_is_remembered_of_the_newest_decisions() -> None:
    lessons = [Lesson(f"d{n}", 1.0, 0.1, 0.1) for n in (1, 2, 3, 1)]

    assert list(remember({}, lessons, 2)) == ["d3", "d1"]
    assert remember({}, lessons, 2)["d1"] == Taught(1.0, 0.2, 0.2, 0.2, logp=0.0)


def test_the_newest_decision_that_was_forgotten_is_known_by_its_time() -> None:
    lessons = [Lesson(f"d{n}", 1.0, 0.1, 0.1, decided=10.0 - n) for n in range(4)]
    before = remember({}, lessons[:2], 3)

    after = remember(before, [replace(lessons[0], reward=0.0), *lessons[2:]], 3)

    assert list(after) == ["d0", "d2", "d3"]
    assert (forgotten(before, after), forgotten(before, before)) == (9.0, 0.0)


@pytest.mark.parametrize(("owed", "now", "undone"), [(0.1, -4.9, True), (0.1, -5.1, False)])
def test_a_retraction_ends_where_the_policy_is_back_where_it_was(
    make_sample: MakeSample, owed: float, now: float, undone: bool
) -> None:
    one = _one(make_sample, 1)
    blamed = remember({}, [Lesson(one.decision_id, -1.0, -owed, 0.1, logp=-5.0)], 9)
    praised = remember({}, [Lesson(one.decision_id, 1.0, owed, 0.1, logp=-5.0)], 9)
    again = replace(one, reward=-0.5)

    [debt] = debts(retract(blamed, one.decision_id), [one])
    [other] = debts(retract(praised, one.decision_id), [one])
    [changed] = debts(revise(blamed, again, PPO), [again])

    assert (debt.is_undone(now), other.is_undone(now)) == (undone, not undone)
    assert not changed.is_undone(now)  # a reward that stands is taught to its end
    known = settle(retract(blamed, one.decision_id), [one.decision_id])
    assert debts(known, [one]) == ()


def test_many_lessons_of_a_decision_move_with_its_reward_as_each_alone() -> None:
    """Where no bound cuts one of them; where one does, one lesson alone is exact."""
    lessons = [
        Lesson("d", 1.0, 0.1 * n, 0.02 * n, Curve(1.0 / n, 0.2 * n, 2.5, -0.1 * n, 0.5))
        for n in (1, 2, 3)
    ]
    apart = [
        lesson.weight * (lesson.curve.advantage(-1.0) - lesson.curve.advantage(1.0))
        for lesson in lessons
    ]

    taught = remember({}, lessons, 10)["d"]

    moved = taught.curve.advantage(-1.0) - taught.curve.advantage(1.0)
    assert taught.weight * moved == pytest.approx(sum(apart))


@pytest.mark.parametrize("multiplier", [0.0, 2.0])
@pytest.mark.parametrize("violation", [False, True])
@pytest.mark.parametrize("newer", [0.5, 0.0, -1.0])
def test_a_revision_owes_what_the_new_reward_would_have_taught_at_once(
    settings: Settings, make_sample: MakeSample, multiplier: float, violation: bool, newer: float
) -> None:
    """Also where the first reward stood out so far that its advantage was cut to the bound."""

    def taught(reward: float) -> Lesson:
        state, _ = _start(settings)
        state.multiplier, state.spread = multiplier, Spread(0.04, 1.0)
        given = [_one(make_sample, n, reward=0.0, user_id=f"u{n}") for n in range(64)]
        given[0] = replace(given[0], reward=reward, violation=violation)
        end_h = torch.zeros(state.policy.hidden_size)
        scored = [Scored(one, [0.0], [0.0], end_h) for one in given]
        weighed = weigh(state, scored, {}, {}, settings.learner)
        return weighed.lessons([(push, 1.0) for push in weighed.advantage_b.tolist()])[0]

    first, at_once = taught(1.0), taught(newer)
    one = _one(make_sample, 0, reward=newer)

    after = revise(remember({}, [first], 10), one, PPO)[one.decision_id]

    assert first.curve.slope > 3.0  # a reward of 1 is beyond the bound
    assert after.wanted == pytest.approx(at_once.coefficient, abs=2e-3 * abs(first.coefficient))


def _start(settings: Settings) -> tuple[TrainState, Progress]:
    state = new_train_state(load_policy(settings), settings.learner)
    return state, Progress(policy="assistant", base=state.policy.base)


def _filler(make_sample: MakeSample, batch: int) -> list[Experience]:
    return [_one(make_sample, 100 * batch + n, user_id=f"user-{n}") for n in range(7)]


def test_a_revised_decision_has_taught_what_its_last_reward_should_have(
    settings: Settings, make_sample: MakeSample
) -> None:
    """However often it was repeated in between, and although the clip cuts the debt in pieces."""
    learner = replace(settings.learner, replay_share=1.0)
    settings = replace(settings, learner=learner)
    state, progress = _start(settings)
    first = _one(make_sample, 0, reward=1.0, user_id="u")
    newer = _one(make_sample, 9000, decision_id=first.decision_id, reward=-1.0, user_id="u")
    progress = advance(state, progress, [first, *_filler(make_sample, 1)], settings)
    for batch in range(2, 8):  # it is drawn from the replay buffer now and then
        progress = advance(state, progress, _filler(make_sample, batch), settings)
    before = progress.taught[first.decision_id]
    assert before.coefficient > 0

    progress = advance(state, progress, [newer, *_filler(make_sample, 9)], settings)
    steps = [progress.taught[first.decision_id].owed]
    while progress.owed:
        batch = 10 + len(steps)
        progress = advance(state, progress, _filler(make_sample, batch), settings)
        steps.append(progress.taught[first.decision_id].owed)
        assert len(steps) < 20

    after = progress.taught[first.decision_id]
    print("owed after each batch:", steps)
    assert after.coefficient == pytest.approx(after.wanted)
    assert steps[0] < 0, "the clip should have left something over"
    [line] = [line for line in progress.ledger if line.sample_id == newer.sample_id]
    assert line.outcome == "revised"
    assert (progress.revised, progress.samples) == (1, len(progress.seen) - 1)
    kept = [e for e in progress.replay.recent if e.decision_id == first.decision_id]
    assert [e.reward for e in kept] in ([-1.0], [])


def _logp(state: TrainState) -> float:
    return sum(state.policy.logprobs([TokenSequence(PROMPT, ANSWER)], 4)[0])


def _served(state: TrainState, make_sample: MakeSample, number: int) -> Experience:
    mu = state.policy.logprobs([TokenSequence(PROMPT, ANSWER)], 4)[0]
    return _one(
        make_sample,
        number,
        prompt_token_ids=PROMPT,
        token_ids=ANSWER,
        logprobs=tuple(mu),
        reward=1.0,
        user_id=f"user-{number}",
    )


def _taken_back(one: Experience) -> tuple[Experience, str]:
    return replace(one, sample_id=f"back-{one.sample_id}", reward=0.0), WITHDRAWN


def _run(settings: Settings, make_sample: MakeSample, praise: bool, take_back: bool) -> float:
    """Return the answer's log-probability after six batches that praise it, and twelve more."""
    state, progress = _start(settings)
    praised: list[Experience] = []
    for batch in range(21, 21 + WARM_UP):
        progress = advance(state, progress, _filler(make_sample, batch), settings)
    for batch in range(1, 7):
        fresh = [_served(state, make_sample, 100_000 * batch + n) for n in range(2 * praise)]
        praised += fresh
        progress = advance(state, progress, [*fresh, *_filler(make_sample, batch)], settings)
    back = [_taken_back(one) for one in praised] if take_back else []
    for batch in range(7, 19):
        progress = advance(
            state, progress, _filler(make_sample, batch), settings, Beside(superseded=back)
        )
        back = []
    assert progress.owed == ()
    for one in praised:
        left = progress.taught[one.decision_id].coefficient
        assert (abs(left) < 1e-8) == take_back
    return _logp(state)


def test_what_was_retracted_is_unlearned(settings: Settings, make_sample: MakeSample) -> None:
    """Nearly as if it had never been said; the optimizer's own scaling keeps a little of it."""
    never = _run(settings, make_sample, praise=False, take_back=False)
    kept = _run(settings, make_sample, praise=True, take_back=False)
    back = _run(settings, make_sample, praise=True, take_back=True)

    print(f"log-probability: never praised {never:.2f}, praised {kept:.2f}, taken back {back:.2f}")
    assert kept > never + 0.3
    assert back - never < 0.35 * (kept - never)


def test_blame_that_many_take_back_does_not_end_as_praise(
    lively_model: Path, settings: Settings, make_sample: MakeSample
) -> None:
    """An account could else promote an answer by blaming it and taking that back."""
    section = replace(settings.learner, learning_rate=2e-3)
    policy = replace(settings.policy, model=str(lively_model))
    settings = replace(settings, policy=policy, learner=section)
    state, progress = _start(settings)
    sequence = TokenSequence(PROMPT, ANSWER)
    [before] = state.policy.logprobs([sequence], 1)
    blamed: list[Experience] = []

    def batch(number: int, blames: int) -> list[Experience]:
        fill = [_one(make_sample, 100 * number + n, user_id=f"u{n}") for n in range(6)]
        given = {"prompt_token_ids": PROMPT, "token_ids": ANSWER, "logprobs": tuple(before)}
        told = [
            _one(make_sample, 100 * number + 50 + n, reward=-1.0, user_id=f"w{number}-{n}", **given)
            for n in range(blames)
        ]
        blamed.extend(told)
        return [*told, *fill]

    for number in range(1, 9):
        progress = advance(state, progress, batch(number, 2), settings)
    low = sum(state.policy.logprobs([sequence], 1)[0]) - sum(before)
    back = [_taken_back(one) for one in blamed]
    for number in range(9, 25):
        progress = advance(state, progress, batch(number, 0), settings, Beside(superseded=back))
        back = []

    assert not progress.owed
    after = sum(state.policy.logprobs([sequence], 1)[0]) - sum(before)
    print("blamed", low, "taken back", after)
    assert low < -1.0
    assert low < after < 0.5


def test_a_decision_that_was_never_learned_owes_nothing_when_it_is_withdrawn(
    settings: Settings, make_sample: MakeSample
) -> None:
    state, progress = _start(settings)
    gone = _one(make_sample, 3)

    progress = advance(
        state, progress, _filler(make_sample, 1), settings, Beside(superseded=[(gone, WITHDRAWN)])
    )

    assert progress.owed == ()
    assert gone.decision_id not in progress.taught


def test_what_the_policy_has_moved_far_from_is_taken_back_without_its_log_probabilities(
    settings: Settings, make_sample: MakeSample
) -> None:
    """What taught most moved furthest: a bound on the log-ratio would keep just that."""
    state, progress = _start(settings)
    first, other = (_one(make_sample, n, reward=1.0, user_id=f"u{n}") for n in (0, 1))
    progress = advance(state, progress, [first, other, *_filler(make_sample, 1)], settings)
    far = tuple(-30.0 for _ in first.token_ids)
    newer = replace(first, sample_id="newer", reward=-1.0, logprobs=far, offset=900)
    gone = replace(other, sample_id="gone", logprobs=far, offset=901)

    fresh, back = [newer, *_filler(make_sample, 2)], [(gone, WITHDRAWN)]
    progress = advance(state, progress, fresh, settings, Beside(superseded=back))
    for batch in range(3, 9):
        progress = advance(state, progress, _filler(make_sample, batch), settings)

    assert progress.owed == ()
    assert progress.taught[first.decision_id].coefficient < 0.0
    assert progress.taught[other.decision_id].coefficient == pytest.approx(0.0, abs=1e-8)
    [line] = [line for line in progress.ledger if line.sample_id == "newer"]
    assert line.outcome == "revised"


def test_new_rewards_that_cannot_be_scored_are_named_and_hold_up_no_others(
    settings: Settings, make_sample: MakeSample
) -> None:
    """Also those whose turn to be paid would have come later: their line is written now."""
    state, progress = _start(settings)
    first = [_one(make_sample, n, reward=1.0, user_id=f"u{n}") for n in range(8)]
    progress = advance(state, progress, first, settings)
    newer = [replace(e, sample_id=f"newer-{e.sample_id}", reward=-1.0) for e in first]
    newer = [replace(e, token_ids=(99_999,)) if n < 6 else e for n, e in enumerate(newer)]

    progress = advance(state, progress, newer, settings)
    while progress.owed and progress.batches < 20:
        progress = advance(state, progress, _filler(make_sample, progress.batches), settings)

    outcomes = {line.sample_id: line.outcome for line in progress.ledger}
    assert [outcomes[e.sample_id] for e in newer] == ["unknown-token"] * 6 + ["revised"] * 2
    assert progress.owed == ()
    paid = [progress.taught[e.decision_id] for e in newer[6:]]
    assert [one.coefficient for one in paid] == pytest.approx([one.wanted for one in paid])


def test_a_retraction_that_cannot_be_scored_stays_owed_and_holds_up_no_others(
    settings: Settings, make_sample: MakeSample
) -> None:
    state, progress = _start(settings)
    first = [_one(make_sample, n, reward=1.0, user_id=f"u{n}") for n in range(8)]
    progress = advance(state, progress, first, settings)
    back = [_taken_back(e) for e in first]
    back = [(replace(e, token_ids=(99_999,)) if n < 6 else e, o) for n, (e, o) in enumerate(back)]

    progress = advance(state, progress, _filler(make_sample, 1), settings, Beside(superseded=back))
    for batch in range(2, 14):
        progress = advance(state, progress, _filler(make_sample, batch), settings)

    left = [progress.taught[e.decision_id].owed for e in first]
    assert left[6:] == pytest.approx([0.0, 0.0], abs=1e-8)
    assert {e.decision_id for e in progress.owed} == {e.decision_id for e in first[:6]}


@pytest.mark.parametrize("loss", ["awr", "likelihood"])
@pytest.mark.parametrize("reward", [1.0, 0.0, -1.0])
def test_what_imitation_taught_is_what_is_taken_back(
    settings: Settings, make_sample: MakeSample, loss: str, reward: float
) -> None:
    """`awr` imitates what it blames, too, if little; of an unlikely answer `likelihood` teaches no
    blame at all."""
    settings = replace(settings, learner=replace(settings.learner, loss=loss))
    state, progress = _start(settings)
    first = _one(make_sample, 0, reward=reward)
    said = math.exp(sum(score(state.policy, state.anchor, [first], 64)[0].prox))

    progress = advance(state, progress, [first, *_filler(make_sample, 1)], settings)

    taught = progress.taught[first.decision_id]
    advantage = taught.curve.advantage(reward)
    if loss == "awr":
        advantage = min(math.exp(advantage), 20.0)
    elif advantage < 0.0:
        advantage *= said / (1.0 - said)
    assert taught.coefficient == pytest.approx(taught.weight * advantage, rel=1e-4)
    back = retract(progress.taught, first.decision_id)[first.decision_id]
    assert back.owed == -taught.coefficient


def test_any_history_of_rewards_ends_as_if_only_the_last_of_each_had_been_taught(
    settings: Settings, make_sample: MakeSample
) -> None:
    """Random rewards, revisions and retractions; once all debts are paid nothing is owed, and a
    retracted decision has taught nothing."""
    seed = random.randrange(1_000_000)
    print("seed", seed)
    draw = random.Random(seed)
    state, progress = _start(settings)
    last: dict[str, Experience | None] = {}
    number = 0
    for _ in range(12):
        fresh: dict[str, Experience] = {}
        gone: list[tuple[Experience, str]] = []
        while len(fresh) < 8:
            number += 1
            known = [d for d in last if d not in fresh]
            old = draw.choice(known) if known and draw.random() < 0.3 else None
            one = _one(make_sample, number, reward=draw.choice((-1.0, 0.0, 1.0)))
            if old is not None:
                one = replace(one, decision_id=old)
            if old is not None and draw.random() < 0.3:
                gone.append((one, WITHDRAWN))
                last[old] = None
            else:
                fresh[one.decision_id] = one
                last[one.decision_id] = one
        kept = [pair for pair in gone if pair[0].decision_id not in fresh]
        progress = advance(state, progress, list(fresh.values()), settings, Beside(superseded=kept))
    _pay(state, progress, settings, make_sample, last)


def _pay(
    state: TrainState,
    progress: Progress,
    settings: Settings,
    make_sample: MakeSample,
    last: dict[str, Experience | None],
) -> None:
    turn = 0
    while progress.owed:
        turn += 1
        progress = advance(state, progress, _filler(make_sample, 50 + turn), settings)
        assert turn < 60
    for decision_id, experience in last.items():
        taught = progress.taught[decision_id]
        assert taught.coefficient == pytest.approx(taught.wanted, abs=1e-8)
        if experience is None:
            assert taught.coefficient == pytest.approx(0.0, abs=1e-8)
        else:
            assert taught.reward == experience.reward
    assert all(bool(torch.isfinite(p).all()) for p in state.policy.adapters().values())
