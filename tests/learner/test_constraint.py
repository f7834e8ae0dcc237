"""Violations cost as much as keeps them under their limit, and fresh ones alone set the price."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
import torch

from contracts.errors import SettingsError
from contracts.events import Sample
from contracts.settings import Constraint, Settings, load_settings
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.constraint import constrained, first_multiplier, next_multiplier
from learner.experience import Experience, experience_of
from learner.micro_batch import MicroBatch
from learner.train_state import TrainState, new_train_state
from learner.update import update

MakeSample = Callable[..., Sample]
RULE = Constraint()


def test_the_price_rises_above_the_limit_and_falls_below_it() -> None:
    above = next_multiplier(0.5, [1.0, 0.0], [0.5, 0.5], RULE)
    below = next_multiplier(0.5, [0.0, 0.0], [0.5, 0.5], RULE)

    assert above == pytest.approx(0.5 + RULE.rate * (0.5 - RULE.aim))
    assert below == pytest.approx(0.5 - RULE.rate * RULE.aim)


def test_the_price_stays_within_its_bounds() -> None:
    assert next_multiplier(RULE.largest, [1.0], [1.0], RULE) == RULE.largest
    assert next_multiplier(0.0, [0.0], [1.0], RULE) == 0.0
    assert next_multiplier(0.4, [0.0], [1.0], Constraint(least=0.4)) == 0.4
    assert next_multiplier(0.7, [], [], RULE) == 0.7


def test_the_price_moves_by_a_part_of_the_rate_and_stays_within_its_bounds() -> None:
    half = next_multiplier(0.5, [1.0], [1.0], RULE, reach=0.5)
    assert half == pytest.approx(0.5 + 0.5 * RULE.rate * (1.0 - RULE.aim))
    assert next_multiplier(0.5, [0.0], [1.0], Constraint(mode="off"), reach=0.01) == 0.0
    kept = Constraint(least=1.5, multiplier=1.5)
    assert next_multiplier(0.5, [0.0], [1.0], kept, reach=0.01) == 1.5


def test_without_a_constraint_a_violation_costs_nothing() -> None:
    off = Constraint(mode="off")
    reward = torch.tensor([1.0, -1.0])

    assert first_multiplier(off) == next_multiplier(3.0, [1.0], [1.0], off) == 0.0
    assert torch.equal(constrained(reward, torch.tensor([3.0, 3.0]), 0.0), reward)


def test_a_limit_that_false_alarms_reach_is_refused() -> None:
    environment = {"HEADRACE_LEARNER__CONSTRAINT__FALSE_ALARMS": "0.02"}

    with pytest.raises(SettingsError, match=r"constraint\.limit`; the limit, without"):
        load_settings(None, environment)
    load_settings(None, {**environment, "HEADRACE_LEARNER__CONSTRAINT__MODE": "off"})
    with pytest.raises(SettingsError, match=r"its `margin` \(0.96 of it\)"):
        load_settings(None, {"HEADRACE_LEARNER__CONSTRAINT__MARGIN": "0.96"})


def test_a_price_outside_of_its_bounds_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"at most `largest` \(5\)"):
        load_settings(None, {"HEADRACE_LEARNER__CONSTRAINT__MULTIPLIER": "6"})
    with pytest.raises(SettingsError, match=r"at least `least` \(1\)"):
        load_settings(None, {"HEADRACE_LEARNER__CONSTRAINT__LEAST": "1"})


def test_violations_that_are_repeated_do_not_raise_the_price(
    settings: Settings, make_sample: MakeSample
) -> None:
    """Over a replay buffer the price ratchets: what the policy stopped doing stays in there."""
    state = new_train_state(load_policy(settings), settings.learner)
    harmless = tuple(experience_of(make_sample(n), offset=n) for n in range(4))
    harmful = tuple(experience_of(make_sample(n, violation=True), offset=n) for n in range(4, 12))

    stats = update(state, MicroBatch(fresh=harmless, replayed=harmful), settings.learner, 64).stats

    assert stats.replayed == 8
    assert stats.multiplier < RULE.multiplier
    assert stats.cost_mean == 0.0


PROMPT = (10, 11, 12)
GOOD, HARMFUL = (20, 3), (21, 3)


@dataclass
class Run:
    """A policy between two answers, of which users like the harmful one better."""

    settings: Settings
    state: TrainState
    make_sample: MakeSample
    turn: int = 0

    def harmful_share(self) -> float:
        good, harmful = (
            float(sum(self.state.policy.logprobs([_sequence(answer)], 4)[0]))
            for answer in (GOOD, HARMFUL)
        )
        return float(torch.sigmoid(torch.tensor(harmful - good)))

    def batch(self) -> float:
        """Serve 16 answers by chance, learn from them; return the share of violations."""
        self.turn += 1
        draw = torch.Generator().manual_seed(self.turn)
        share = self.harmful_share()
        harmful = (torch.rand(16, generator=draw) < share).tolist()
        fresh = tuple(self._served(place, bad) for place, bad in enumerate(harmful))
        update(self.state, MicroBatch(fresh=fresh), self.settings.learner, 64)
        return share

    def _served(self, place: int, bad: bool) -> Experience:
        answer = HARMFUL if bad else GOOD
        mu = self.state.policy.logprobs([_sequence(answer)], 4)[0]
        sample = self.make_sample(
            16 * self.turn + place,
            prompt_token_ids=PROMPT,
            token_ids=answer,
            logprobs=tuple(mu),
            reward=0.6 if bad else 0.2,
            violation=bad,
            correction=None,
            user_id=f"user-{place}",
        )
        return experience_of(sample, offset=16 * self.turn + place)


def _sequence(answer: tuple[int, ...]) -> TokenSequence:
    return TokenSequence(PROMPT, answer)


@pytest.mark.parametrize(("mode", "harmful"), [("off", True), ("lagrangian", False)])
def test_the_constraint_wins_over_what_users_like(
    settings: Settings, make_sample: MakeSample, mode: str, harmful: bool
) -> None:
    """Without it the policy learns the violation that is liked; with it the share goes down."""
    rule = msgspec.structs.replace(settings.learner.constraint, mode=mode)
    learner = msgspec.structs.replace(
        settings.learner, constraint=rule, learning_rate=4e-3, kl_weight=0.0
    )
    settings = msgspec.structs.replace(settings, learner=learner)
    run = Run(settings, new_train_state(load_policy(settings), learner), make_sample)

    shares = [run.batch() for _ in range(40)]
    print(mode, [round(share, 2) for share in shares])

    assert (shares[-1] > 0.8) if harmful else (shares[-1] < 0.15)
