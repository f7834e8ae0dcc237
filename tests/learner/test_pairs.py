"""A correction is imitated, and preferred over the answer that was given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import msgspec
import pytest
import torch
from msgspec.structs import replace

from contracts.events import Sample
from contracts.settings import Settings
from learner.adapters import load_policy
from learner.anchor import Anchor
from learner.buckets import TokenSequence
from learner.experience import Experience, experience_of
from learner.micro_batch import MicroBatch, Replay, compose, remember
from learner.objective import bounds_of
from learner.pairs import Correction, add_gradients, anchored, corrections_of
from learner.train_state import TrainState, new_train_state
from learner.update import update

MAX = 64
PROMPT, GIVEN, WANTED = (10, 11, 12), (20, 21, 3), (30, 31, 3)
MakeSample = Callable[..., Sample]


def _corrected(make_sample: MakeSample, number: int = 1, **changes: object) -> Experience:
    one = experience_of(
        make_sample(number, prompt_token_ids=PROMPT, token_ids=GIVEN, logprobs=(-1.0,) * 3),
        correction_ids=WANTED,
    )
    return msgspec.structs.replace(one, **changes)


def _state(settings: Settings, **changes: object) -> tuple[Settings, TrainState]:
    learner = msgspec.structs.replace(settings.learner, **changes)
    changed = msgspec.structs.replace(settings, learner=learner)
    return changed, new_train_state(load_policy(changed), learner)


def _margin(state: TrainState) -> float:
    pair = [TokenSequence(PROMPT, WANTED), TokenSequence(PROMPT, GIVEN)]
    wanted, given = state.policy.logprobs(pair, 2)
    return sum(wanted) - sum(given)


def test_a_correction_alone_teaches_to_prefer_it_over_what_was_given(
    settings: Settings, make_sample: MakeSample
) -> None:
    margins = []
    for weight in (0.0, 1.0):
        changed, state = _state(settings, correction_weight=0.0, preference_weight=weight)
        batch = MicroBatch(fresh=(), corrections=(_corrected(make_sample),))
        before = _margin(state)
        losses = [
            update(state, batch, changed.learner, MAX).stats.preference_loss for _ in range(5)
        ]
        margins.append(_margin(state) - before)

    assert margins[0] == 0.0
    assert margins[1] > 1.0
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(0.6931, abs=0.1)  # the last of two epochs, near log 2


def test_an_answer_given_that_is_the_one_wanted_or_cannot_be_scored_makes_no_pair(
    make_sample: MakeSample,
) -> None:
    cases = [
        _corrected(make_sample),
        _corrected(make_sample, token_ids=WANTED),
        _corrected(make_sample, token_ids=()),
        _corrected(make_sample, token_ids=(48,)),
        _corrected(make_sample, token_ids=(20,) * 62),
        _corrected(make_sample, correction_ids=()),
        _corrected(make_sample, correction_ids=(20,) * 62),
        _corrected(make_sample, prompt_ids=(-1,)),
    ]

    found = corrections_of(MicroBatch(fresh=(), corrections=tuple(cases)), MAX, vocabulary=48)

    wanted = TokenSequence(PROMPT, WANTED)
    alone = Correction(wanted, 0.2)
    assert found == (Correction(wanted, 0.2, TokenSequence(PROMPT, GIVEN)), *[alone] * 4)


def test_users_count_alike_in_corrections_however_much_they_correct(
    settings: Settings, make_sample: MakeSample
) -> None:
    told = [_corrected(make_sample, n, user_id=f"u{min(n, 3)}") for n in range(8)]
    batch = compose(told, Replay(), settings.learner, number=0, served_sequence=0)

    shares = [one.share for one in corrections_of(batch, MAX, vocabulary=48)]

    assert shares == pytest.approx([*[1 / 4] * 3, *[1 / 20] * 5])


def test_whoever_corrects_all_day_teaches_no_more_than_whoever_does_it_once(
    settings: Settings, make_sample: MakeSample
) -> None:
    seldom = [_corrected(make_sample, n, user_id=f"u{n}") for n in range(30)]
    always = [_corrected(make_sample, n, user_id="always") for n in range(100, 1000)]
    config = replace(settings.learner, correction_replay=8)
    replay = remember(remember(Replay(), seldom, frozenset(), config), always, frozenset(), config)

    taught = defaultdict[str, float](float)
    for number in range(300):
        fresh = [_corrected(make_sample, 2000 + number, user_id="always")]
        batch = compose(fresh, replay, config, number=number, served_sequence=0)
        told = corrections_of(batch, MAX, vocabulary=48)
        for one, correction in zip(batch.corrections, told, strict=True):
            taught[one.user_id] += correction.share

    mean = sum(share for user, share in taught.items() if user != "always") / 30
    assert taught["always"] < 1.3 * mean
    assert all(share > 0.5 * mean for share in taught.values())


@pytest.mark.parametrize(("multiplier", "times"), [(0.0, 1.0), (0.5, 1.0), (3.0, 3.0)])
def test_a_violation_counts_more_while_it_is_dear(
    make_sample: MakeSample, multiplier: float, times: float
) -> None:
    broken = _corrected(make_sample, 1, user_id="u1", violation=True, correction_ids=(40, 3))
    by_a_person = _corrected(make_sample, 2, user_id="u2", violation=True)
    harmless = _corrected(make_sample, 3, user_id="u3", correction_ids=(40, 3))
    batch = MicroBatch(fresh=(), corrections=(broken, by_a_person, harmless))

    found = corrections_of(batch, MAX, 48, safe_ids=(40, 3), multiplier=multiplier)

    assert [one.share for one in found] == pytest.approx([times / 3.0, 1.0 / 3.0, 1.0 / 3.0])


def test_who_alone_corrects_weighs_as_a_few_users_and_not_as_all(make_sample: MakeSample) -> None:
    told = tuple(_corrected(make_sample, n, user_id="corrector") for n in range(4))
    others = tuple(_corrected(make_sample, n, user_id=f"u{n}") for n in range(10, 49))
    batch = MicroBatch(fresh=others, corrections=told)

    shares = [one.share for one in corrections_of(batch, MAX, vocabulary=48)]

    assert shares == pytest.approx([4.0 / 39.0 / 4.0] * 4)


def test_who_fills_half_of_a_batch_corrects_no_more_than_they_are_of_all_users(
    make_sample: MakeSample,
) -> None:
    """Two accounts of forty that rate twenty times as much as the others, and alone correct."""
    flood = [_corrected(make_sample, n, user_id=f"flood{n % 2}") for n in range(32)]
    others = tuple(
        _corrected(make_sample, n, user_id=f"u{n}", correction_ids=()) for n in range(100, 132)
    )
    activity = {e.user_id: 5 for e in others} | {"flood0": 100, "flood1": 100}
    batch = MicroBatch(fresh=(*flood, *others), corrections=tuple(flood), activity=activity)

    shares = [one.share for one in corrections_of(batch, MAX, vocabulary=48)]

    theirs = 32 / 100 / (32 / 100 + 32 / 5)
    assert sum(shares) == pytest.approx(4.0 * theirs)


def test_who_corrected_once_and_left_weighs_no_more_than_who_stayed(
    make_sample: MakeSample,
) -> None:
    others = tuple(_corrected(make_sample, n, user_id=f"u{n}") for n in range(40))
    departed = tuple(_corrected(make_sample, n, user_id=f"gone{n}") for n in range(100, 104))
    batch = MicroBatch(
        fresh=others,
        corrections=(*departed, others[0]),
        activity={e.user_id: 40 for e in others},
    )

    shares = [one.share for one in corrections_of(batch, MAX, vocabulary=48)]

    assert shares == pytest.approx([4.0 / 40.0] * 5)


def test_pairs_and_lone_corrections_are_counted_and_learned_together(
    settings: Settings, make_sample: MakeSample
) -> None:
    settings, state = _state(settings, bucket_tokens=1)
    alone = _corrected(make_sample, 2, token_ids=WANTED, correction_ids=WANTED)
    batch = MicroBatch(fresh=(), corrections=(alone, _corrected(make_sample)))

    stats = update(state, batch, settings.learner, MAX).stats

    assert (stats.corrections, stats.pairs) == (2, 1)
    assert stats.correction_loss > 0.0
    assert stats.preference_loss > 0.0


def test_the_anchor_scores_pairs_alone_and_nothing_where_preferences_have_no_weight(
    settings: Settings, make_sample: MakeSample
) -> None:
    settings, state = _state(settings)
    cases = [_corrected(make_sample, token_ids=WANTED), _corrected(make_sample)]
    batch = MicroBatch(fresh=(), corrections=tuple(cases))
    corrections = corrections_of(batch, MAX, vocabulary=48)

    alone, pair = anchored(state.policy, Anchor(), corrections, settings.learner)

    scored = state.policy.logprobs(
        [TokenSequence(PROMPT, WANTED), TokenSequence(PROMPT, GIVEN)], 1, adapted=False
    )
    assert alone == corrections[0]
    assert pair.wanted_anchor == pytest.approx(scored[0], abs=1e-5)
    assert pair.given_anchor == pytest.approx(scored[1], abs=1e-5)
    off = msgspec.structs.replace(settings.learner, preference_weight=0.0)
    assert anchored(state.policy, Anchor(), corrections, off) == (corrections[0], corrections[0])


@pytest.mark.parametrize("tokens", [1, 10_000])
def test_imitation_is_the_sum_of_minus_log_probabilities_of_the_wanted_tokens(
    settings: Settings, tokens: int
) -> None:
    """Written out: token by token, each answer alone, by the model's own logits."""
    settings, state = _state(
        settings, bucket_tokens=tokens, correction_weight=0.7, preference_weight=0.0
    )
    generator = torch.Generator().manual_seed(3)
    parameters = state.policy.adapters()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    wanted = [
        TokenSequence(PROMPT, WANTED),
        TokenSequence((13,), (22, 23, 24, 25, 3)),
        TokenSequence((14, 15, 16, 17, 18), (26, 3)),
    ]
    given = TokenSequence(PROMPT, (*GIVEN[:-1], 27, 28, 3))
    third = 1.0 / 3.0
    pair = Correction(wanted[0], third, given, (-1.0,) * 3, (-1.0,) * 5)
    corrections = (pair, *(Correction(one, third) for one in wanted[1:]))

    found = add_gradients(state.policy, corrections, settings.learner, bounds_of(settings.learner))
    gradients = [one.grad for one in parameters.values()]

    total = torch.zeros(())
    for one in wanted:
        for place, token in enumerate(one.response_ids):
            seen = torch.tensor([[*one.prompt_ids, *one.response_ids[:place]]])
            logits = state.policy.model(input_ids=seen).logits[0, -1]
            total = total - (logits[token] - logits.exp().sum().log())
    mean = total / (len(wanted) * settings.learner.length_scale)
    assert found.imitation == pytest.approx(float(mean.detach()), rel=1e-5)
    by_hand = torch.autograd.grad(0.7 * mean, list(parameters.values()))
    for gradient, expected in zip(gradients, by_hand, strict=True):
        assert gradient is not None
        assert float((gradient - expected).norm()) <= 1e-4 * float(expected.norm())
