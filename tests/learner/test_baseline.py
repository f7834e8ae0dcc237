"""What the baseline learns from: finite numbers, and only of a batch that is in the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest
import torch
from torch import Tensor

from contracts.events import Sample
from contracts.events.decision import FeatureValue
from contracts.settings import Settings
from learner.adapters import load_policy
from learner.experience import USER_REWARD_MEAN, Experience, experience_of
from learner.progress import Progress, advance
from learner.train_state import TrainState, new_train_state
from learner.user_features import with_reward_means

MakeSample = Callable[..., Sample]
OUT_OF_RANGE = (1e39, -1.5, 10**400, float("nan"), float("inf"), "high")


def _start(settings: Settings, **changes: object) -> tuple[Settings, TrainState, Progress]:
    learner = msgspec.structs.replace(settings.learner, **changes)
    changed = msgspec.structs.replace(settings, learner=learner)
    train = new_train_state(load_policy(changed), learner)
    return changed, train, Progress(policy="assistant", base=train.policy.base)


def _batch(make_sample: MakeSample, first: int, **changes: object) -> list[Experience]:
    numbers = range(first, first + 8)
    return [experience_of(make_sample(n, correction=None, **changes), offset=n) for n in numbers]


def _values(train: TrainState) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in train.value.parameters()]


def _known(value: float | str, make_sample: MakeSample) -> Experience:
    return experience_of(make_sample(1, features={USER_REWARD_MEAN: FeatureValue(value=value)}))


@pytest.mark.parametrize("value", [-1, -0.25, 1.0])
def test_a_users_mean_reward_is_what_the_gateway_logged(
    make_sample: MakeSample, value: float
) -> None:
    assert _known(value, make_sample).user_reward_mean == value


@pytest.mark.parametrize("value", OUT_OF_RANGE)
def test_what_cannot_be_a_mean_reward_is_none(make_sample: MakeSample, value: float | str) -> None:
    found = _known(value, make_sample)
    assert (found.user_reward_mean, found.features_logged) == (None, True)


def test_nor_is_such_a_value_taken_from_the_feature_store(make_sample: MakeSample) -> None:
    found: Sequence[float | None] = (1e39, float("nan"), 0.5, None)
    asked = [experience_of(make_sample(n)) for n in range(4)]
    given = with_reward_means(asked, lambda _: list(found))
    assert [e.user_reward_mean for e in given] == [None, None, 0.5, None]


def test_one_absurd_feature_does_not_stop_the_learner_for_good(
    settings: Settings, make_sample: MakeSample
) -> None:
    settings, train, progress = _start(settings)
    absurd = {USER_REWARD_MEAN: FeatureValue(value=1e39)}
    for first, features in ((0, absurd), (8, {}), (16, {})):
        progress = advance(train, progress, _batch(make_sample, first, features=features), settings)
        assert not progress.stats.skipped
    assert all(bool(value.isfinite().all()) for value in _values(train))
    assert progress.samples == 24


def test_the_baseline_takes_no_step_on_a_gradient_that_is_no_number(
    settings: Settings, make_sample: MakeSample
) -> None:
    settings, train, progress = _start(settings)
    before = _values(train)
    hooks = [
        one.register_hook(lambda grad: grad * float("nan")) for one in train.value.parameters()
    ]
    progress = advance(train, progress, _batch(make_sample, 0), settings)
    for hook in hooks:
        hook.remove()
    assert not progress.stats.skipped
    assert all(map(torch.equal, _values(train), before))
    assert progress.stats.value_loss == 0.0


def test_a_step_that_is_skipped_leaves_baseline_and_spread_as_they_were(
    settings: Settings, make_sample: MakeSample
) -> None:
    settings, train, progress = _start(settings)
    progress = advance(train, progress, _batch(make_sample, 0), settings)
    before = _values(train), train.spread, msgspec.structs.replace(progress)
    broken = msgspec.structs.replace(settings.learner, kl_weight=1e38, length_scale=1e-38)
    after = advance(
        train,
        progress,
        _batch(make_sample, 8),
        msgspec.structs.replace(settings, learner=broken),
    )
    assert after.stats.skipped
    assert all(map(torch.equal, _values(train), before[0]))
    assert train.spread == after.spread == before[1]
    steps = {float(one["step"]) for one in train.value_optimizer.state.values()}
    assert steps == {float(settings.learner.inner_epochs)}
