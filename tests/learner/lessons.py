"""Samples that teach a tiny policy one answer, and take it back."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from contracts.events import Sample
from contracts.settings import Settings
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.experience import Experience, experience_of
from learner.ledger import WITHDRAWN
from learner.progress import Progress
from learner.train_state import TrainState, new_train_state

MakeSample = Callable[..., Sample]
PROMPT, ANSWER = (10, 11, 12), (20, 3)


def rated(make_sample: MakeSample, number: int, **changes: object) -> Experience:
    """Return the experience of a sample."""
    return experience_of(make_sample(number, correction=None, **changes), offset=number)


def started(settings: Settings) -> tuple[TrainState, Progress]:
    """Return a policy that has learned nothing yet, and how far it came."""
    state = new_train_state(load_policy(settings), settings.learner)
    return state, Progress(policy="assistant", base=state.policy.base)


def others(make_sample: MakeSample, batch: int) -> list[Experience]:
    """Return seven samples of other users for a batch."""
    return [rated(make_sample, 100 * batch + n, user_id=f"user-{n}") for n in range(7)]


def praised_as_served(state: TrainState, make_sample: MakeSample, number: int) -> Experience:
    """Return praise of the answer, with its log-probabilities as they are now."""
    mu = state.policy.logprobs([TokenSequence(PROMPT, ANSWER)], 4)[0]
    return rated(
        make_sample,
        number,
        prompt_token_ids=PROMPT,
        token_ids=ANSWER,
        logprobs=tuple(mu),
        reward=1.0,
        user_id=f"user-{number}",
    )


def taken_back(one: Experience) -> tuple[Experience, str]:
    """Return what the learner reads when a reward is retracted."""
    return replace(one, sample_id=f"back-{one.sample_id}", reward=0.0), WITHDRAWN
