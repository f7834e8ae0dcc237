"""What a reward model foretells makes doubly robust estimates sharper, and never wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np
import pytest

from contracts.events import Sample
from contracts.settings import Settings
from learner import off_policy
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.direct_method import PROMPT_BINS, bin_of, foretell
from learner.drawing import draw
from learner.experience import Experience, experience_of
from learner.off_policy import Floats, Foretold, LoggedAnswers, cross_fitted
from learner.policy import Policy
from learner.reward_model import Expected, RewardModel
from learner.scoring import sequence_of

Model = Literal["none", "right", "biased", "noise", "asked of half"]
LOGS, COUNT, DRAWS = 100, 400, 4
KIND_P, WORDING_P = np.array([0.6, 0.4]), 0.8
"""How often the candidate takes each of two decisions, and puts its answer well."""
KIND_REWARD, WORDING_REWARD = np.array([0.3, -0.3]), 0.6
VALUE = float(KIND_P @ KIND_REWARD) + (2.0 * WORDING_P - 1.0) * WORDING_REWARD


def test_tokens_that_differ_by_a_number_of_bins_are_hashed_apart() -> None:
    bins = [bin_of(token * PROMPT_BINS) for token in range(1_000)]
    assert set(bins) == set(range(PROMPT_BINS))
    assert max(map(bins.count, set(bins))) < 100


def _estimates(model: Model, seed: int = 0) -> Floats:
    """Return estimates of the candidate's value from logs of a policy that decides by coin.

    How an answer is put decides most of its reward, and no first decision tells it.
    """
    rng = np.random.default_rng(seed)
    return np.array([off_policy.doubly_robust(_log(rng, model)) for _ in range(LOGS)])


def _log(rng: np.random.Generator, model: Model) -> LoggedAnswers:
    kind_n, well_n = rng.integers(2, size=COUNT), rng.integers(2, size=COUNT)
    rewards_n = KIND_REWARD[kind_n] + WORDING_REWARD * (2.0 * well_n - 1.0)
    rewards_n = rewards_n + rng.normal(scale=0.2, size=COUNT)
    drawn_n = (rng.random((COUNT, DRAWS)) < WORDING_P).mean(axis=1)
    users = [f"user-{n % 50}" for n in range(COUNT)]
    predicted_n, expected_n = cross_fitted(
        lambda decision_n: np.eye(2)[decision_n],
        kind_n,
        np.tile(KIND_P, (COUNT, 1)),
        rewards_n,
        users,
        _foretold(rng, model, well_n.astype(float), drawn_n),
    )
    wording_n = np.where(well_n == 1, WORDING_P, 1.0 - WORDING_P)
    return LoggedAnswers(
        weights_n=KIND_P[kind_n] * wording_n / 0.25,
        rewards_n=rewards_n,
        costs_n=np.zeros(COUNT),
        users=tuple(users),
        predicted_n=predicted_n,
        expected_n=expected_n,
    )


def _foretold(
    rng: np.random.Generator, model: Model, well_n: Floats, drawn_n: Floats
) -> Foretold | None:
    noise_2n = rng.normal(size=(2, COUNT))  # drawn for every model: all see the same logs
    if model == "none":
        return None
    if model == "noise":
        return Foretold(noise_2n[0], noise_2n[1])
    if model == "biased":
        return Foretold(5.0 - 3.0 * well_n, 5.0 - 3.0 * drawn_n)
    asked_n = np.arange(COUNT) >= (COUNT // 2 if model == "asked of half" else 0)
    return Foretold(np.where(asked_n, well_n - 0.5, 0.0), np.where(asked_n, drawn_n - 0.5, 0.0))


@pytest.mark.parametrize("model", ["none", "right", "biased", "noise", "asked of half"])
def test_the_estimate_is_centred_on_the_truth_whatever_is_foretold(model: Model) -> None:
    found = _estimates(model)
    error = found.std(ddof=1) / np.sqrt(LOGS)
    # Self-normalised weights and a penalised regression have a bias of the order of 1/n.
    assert found.mean() == pytest.approx(VALUE, abs=3.5 * error + 2.0 / COUNT)


def test_a_model_that_knows_something_takes_noise_out_and_one_that_knows_nothing_adds_little() -> (
    None
):
    spread = {m: float(_estimates(m).std()) for m in ("none", "right", "noise", "asked of half")}
    assert spread["right"] < 0.85 * spread["none"]
    assert spread["asked of half"] < spread["none"]
    assert spread["noise"] < 1.1 * spread["none"]


class LikesLength(RewardModel):
    """Expects more of longer answers, which is all it knows."""

    def __init__(self) -> None: ...

    def score(self, answers: Sequence[TokenSequence]) -> list[Expected]:
        """Return a fortieth of each answer's length."""
        return [Expected(len(one.response_ids) / 40.0, 0.0, 0.0) for one in answers]


def _logged(
    policy: Policy, make_sample: Callable[..., Sample], mosts: Sequence[int | None]
) -> list[Experience]:
    """Answers that the policy drew, each with its own bound on the length."""
    asked = [
        experience_of(make_sample(n, max_tokens=most, temperature=1.0))
        for n, most in enumerate(mosts)
    ]
    found = []
    for number, (one, most) in enumerate(zip(asked, mosts, strict=True)):
        answer = draw(policy, [sequence_of(one)], most or 40, 64, seed=100 + number)[0]
        found.append(msgspec.structs.replace(one, token_ids=answer))
    return found


def test_the_policy_that_gave_the_answers_draws_no_better_ones(
    settings: Settings, make_sample: Callable[..., Sample]
) -> None:
    """However short a request wanted its answer, and whatever the gateway's own bound is."""
    policy = load_policy(settings)
    given = _logged(policy, make_sample, [4 if n % 2 else 40 for n in range(160)])
    found = foretell(policy, given, settings, LikesLength())
    assert found.given_n.std() > 0.1
    for part_n in (found.drawn_n - found.given_n, (found.drawn_n - found.given_n)[1::2]):
        assert abs(part_n.mean()) < 3.5 * part_n.std() / np.sqrt(len(part_n)) + 1e-9


def test_which_questions_are_asked_depends_on_neither_their_place_nor_their_answer(
    settings: Settings, make_sample: Callable[..., Sample]
) -> None:
    policy = load_policy(settings)
    few = msgspec.structs.replace(settings.learner, drawn_answers=80)
    mine = msgspec.structs.replace(settings, learner=few)
    given = _logged(policy, make_sample, [4] * 40 + [None] * 10)

    def asked(answers: Sequence[Experience]) -> set[str]:
        found = foretell(policy, answers, mine, LikesLength())
        told = zip(answers, found.given_n, found.drawn_n, strict=True)
        return {e.decision_id for e, own, drawn in told if own or drawn}

    first = asked(given)
    assert 15 <= len(first) <= 20
    assert asked(given[::-1]) == first
    assert not first & {e.decision_id for e in given[40:]}
