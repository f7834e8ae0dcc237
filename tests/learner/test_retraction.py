"""What was learned and is retracted: undone, as far as the policy is still beyond where it was."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.settings import Settings
from learner.buckets import TokenSequence
from learner.experience import Experience
from learner.ledger import REVISED, WITHDRAWN, Payment
from learner.progress import Beside, advance, released
from learner.train_state import TrainState
from tests.learner.lessons import (
    ANSWER,
    PROMPT,
    MakeSample,
    others,
    praised_as_served,
    rated,
    started,
    taken_back,
)

WARM_UP = 20
"""Batches before it begins: Adam's first steps are long whatever the gradient, and not undone."""


def _logp(state: TrainState) -> float:
    return sum(state.policy.logprobs([TokenSequence(PROMPT, ANSWER)], 4)[0])


def _run(settings: Settings, make_sample: MakeSample, praise: bool, take_back: bool) -> float:
    """Return the answer's log-probability after six batches that praise it, and twelve more."""
    state, progress = started(settings)
    praised: list[Experience] = []
    for batch in range(21, 21 + WARM_UP):
        progress = advance(state, progress, others(make_sample, batch), settings)
    for batch in range(1, 7):
        fresh = [
            praised_as_served(state, make_sample, 100_000 * batch + n) for n in range(2 * praise)
        ]
        praised += fresh
        progress = advance(state, progress, [*fresh, *others(make_sample, batch)], settings)
    taught = sum(progress.taught[one.decision_id].coefficient for one in praised)
    back = [taken_back(one) for one in praised] if take_back else []
    for batch in range(7, 19):
        progress = advance(
            state, progress, others(make_sample, batch), settings, Beside(superseded=back)
        )
        back = []
    assert progress.owed == ()
    left = sum(progress.taught[one.decision_id].coefficient for one in praised)
    assert (left < 0.5 * taught) == take_back
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
    state, progress = started(settings)
    sequence = TokenSequence(PROMPT, ANSWER)
    [before] = state.policy.logprobs([sequence], 1)
    blamed: list[Experience] = []

    def batch(number: int, blames: int) -> list[Experience]:
        fill = [rated(make_sample, 100 * number + n, user_id=f"u{n}") for n in range(6)]
        given = {"prompt_token_ids": PROMPT, "token_ids": ANSWER, "logprobs": tuple(before)}
        told = [
            rated(
                make_sample, 100 * number + 50 + n, reward=-1.0, user_id=f"w{number}-{n}", **given
            )
            for n in range(blames)
        ]
        blamed.extend(told)
        return [*told, *fill]

    for number in range(1, 9):
        progress = advance(state, progress, batch(number, 2), settings)
    low = sum(state.policy.logprobs([sequence], 1)[0]) - sum(before)
    back = [taken_back(one) for one in blamed]
    for number in range(9, 25):
        progress = advance(state, progress, batch(number, 0), settings, Beside(superseded=back))
        back = []

    assert not progress.owed
    after = sum(state.policy.logprobs([sequence], 1)[0]) - sum(before)
    print("blamed", low, "taken back", after)
    assert low < -1.0
    assert low < after < 0.5


def test_a_lesson_is_not_taught_again_each_time_it_is_taken_back(
    settings: Settings, make_sample: MakeSample
) -> None:
    """Others keep the answer below where it was, so that every retraction ends at once."""
    settings = replace(settings, learner=replace(settings.learner, replay_share=0.0))
    state, progress = started(settings)
    praise = praised_as_served(state, make_sample, 0)
    paid = 0.0
    for turn in range(1, 14):
        blames = [praised_as_served(state, make_sample, 1000 * turn + n) for n in range(4)]
        fresh = [replace(e, reward=-1.0) for e in blames] + others(make_sample, turn)[:3]
        back = [taken_back(replace(praise, sample_id=f"s{turn}"))] if turn % 2 == 0 else []
        if not back:
            fresh.append(replace(praise, sample_id=f"s{turn}"))
        progress = advance(state, progress, fresh, settings, Beside(superseded=back))
        if turn == 1:
            paid = progress.taught[praise.decision_id].coefficient
    taught = progress.taught[praise.decision_id]
    assert taught.retracted is None
    assert paid > 0.0
    assert taught.coefficient + taught.owed == pytest.approx(paid, rel=0.01)
    gained = [o.coefficient for o in progress.ledger if o.decision_id == praise.decision_id]
    assert sum(one for one in gained if one > 0.0) < 1.1 * paid


def test_a_decision_that_was_never_learned_owes_nothing_when_it_is_withdrawn(
    settings: Settings, make_sample: MakeSample
) -> None:
    state, progress = started(settings)
    gone = rated(make_sample, 3)

    progress = advance(
        state, progress, others(make_sample, 1), settings, Beside(superseded=[(gone, WITHDRAWN)])
    )

    assert progress.owed == ()
    assert gone.decision_id not in progress.taught


def test_a_retraction_that_cannot_be_scored_stays_owed_and_holds_up_no_others(
    settings: Settings, make_sample: MakeSample
) -> None:
    state, progress = started(settings)
    first = [rated(make_sample, n, reward=1.0, user_id=f"u{n}") for n in range(8)]
    progress = advance(state, progress, first, settings)
    back = [taken_back(e) for e in first]
    back = [(replace(e, token_ids=(99_999,)) if n < 6 else e, o) for n, (e, o) in enumerate(back)]

    progress = advance(state, progress, others(make_sample, 1), settings, Beside(superseded=back))
    for batch in range(2, 14):
        progress = advance(state, progress, others(make_sample, batch), settings)

    left = [progress.taught[e.decision_id].owed for e in first]
    assert left[6:] == pytest.approx([0.0, 0.0], abs=1e-8)
    assert {e.decision_id for e in progress.owed} == {e.decision_id for e in first[:6]}


def test_the_ledgers_of_all_versions_add_up_to_what_was_taught_of_each_decision(
    settings: Settings, make_sample: MakeSample
) -> None:
    """Eight change their mind at once, of whom a batch pays two, and two of them take it back."""
    settings = replace(settings, learner=replace(settings.learner, replay_share=0.0))
    state, progress = started(settings)
    first = [
        rated(make_sample, n, user_id=f"user-{n}", decision_id=f"d{n}", reward=1.0)
        for n in range(8)
    ]
    changed = [
        replace(e, sample_id=f"again-{e.sample_id}", reward=-1.0, offset=e.offset + 100)
        for e in first
    ]
    back = [taken_back(replace(e, offset=e.offset + 300)) for e in changed[:2]]
    told: dict[str, float] = defaultdict(float)
    put_right: list[Payment] = []
    batches = [first, changed, *(others(make_sample, n) for n in range(5, 30))]
    for number, fresh in enumerate(batches):
        beside = Beside(superseded=back if number == 8 else [])
        progress = advance(state, progress, fresh, settings, beside)
        if number == 1:
            revised = [one for one in progress.ledger if one.outcome == REVISED]
            assert len(revised) == 8
            assert sum(one.coefficient != 0.0 for one in revised) == 2
        if number % 3 == 2 or number == len(batches) - 1:
            for line in progress.ledger:
                told[line.decision_id] += line.coefficient
            for paid in progress.payments:
                told[paid.decision_id] += paid.coefficient
            put_right += progress.payments
            progress = released(progress, f"v{number}")
            assert not progress.payments
    assert progress.owed == ()
    for e in first:
        taught = progress.taught[e.decision_id]
        assert told[e.decision_id] == pytest.approx(taught.coefficient, abs=1e-6)
    assert {one.sample_id for one in put_right} >= {e.sample_id for e, _ in back}
