"""The anchor becomes a version that nearly all users have, and scores like that version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from contracts.events import BASE_VERSION, Sample
from contracts.evidence import ReleaseEvidence
from contracts.settings import Settings
from learner import checkpoint
from learner.adapters import ADAPTER_WEIGHTS, load_policy
from learner.anchor import Anchor, in_service, refreshed
from learner.buckets import TokenSequence
from learner.directory import versions_directory
from learner.experience import Experience, experience_of
from learner.policy import Policy
from learner.progress import Progress, advance, released
from learner.publish import publish
from learner.scoring import score
from learner.train_state import TrainState, new_train_state

MakeSample = Callable[..., Sample]
SEQUENCES = [TokenSequence((10, 11, 12), (20, 21, 3)), TokenSequence((14,), (22, 3), 0.7)]


def _served_by(make_sample: MakeSample, *sequences: int) -> list[Experience]:
    return [
        msgspec.structs.replace(
            experience_of(make_sample(number), offset=number), behaviour_sequence=sequence
        )
        for number, sequence in enumerate(sequences)
    ]


def _moved(policy: Policy, seed: int) -> dict[str, torch.Tensor]:
    """Move the adapters, and return what they are then."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.adapters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return {name: p.detach().clone() for name, p in policy.adapters().items()}


def _publish(settings: Settings, train: TrainState, progress: Progress) -> Progress:
    """Release the present weights, without the evidence that a gate would ask for."""
    evidence = ReleaseEvidence(
        policy=progress.policy,
        sequence=progress.sequence,
        parent=progress.parent,
        as_of=None,
        samples=0,
        users=0,
        versions={},
        kl_to_parent=None,
        logged_reward=0.0,
        logged_cost=0.0,
        levels={},
        slices=(),
    )
    version = publish(settings, train.policy, progress, evidence).version
    return released(progress, version)


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        ((), 0),
        ((3,), 3),
        ((0, 1, 1, 1), 1),
        ((0, 0, 1, 1), 0),
        ((2, 1, 0, 1, 2, 3, 2, 2), 1),
        ((2, 1, 0, 2, 2, 3, 2, 2), 2),
    ],
)
def test_a_release_is_in_service_when_three_quarters_of_the_answers_are_of_it_or_newer(
    served: tuple[int, ...], expected: int
) -> None:
    assert in_service(served) == expected


def test_under_an_anchor_the_policy_scores_as_that_version_and_is_itself_again_afterwards(
    settings: Settings,
) -> None:
    policy = load_policy(settings)
    assert Anchor().logprobs(policy, SEQUENCES, 2) == policy.logprobs(SEQUENCES, 2, adapted=False)
    anchor = Anchor("v1", _moved(policy, 1))
    as_version = policy.logprobs(SEQUENCES, 2)
    now = _moved(policy, 2)

    assert anchor.logprobs(policy, SEQUENCES, 2) == as_version

    assert policy.logprobs(SEQUENCES, 2) != as_version
    for name, parameter in policy.adapters().items():
        assert torch.equal(parameter, now[name])
        assert parameter.requires_grad


def test_the_baseline_reads_the_base_whatever_the_anchor_is(
    settings: Settings, make_sample: MakeSample
) -> None:
    policy = load_policy(settings)
    experiences = _served_by(make_sample, *[0] * 6)
    before = score(policy, Anchor(), experiences, 4)
    anchor = Anchor("v1", _moved(policy, 1))

    after = score(policy, anchor, experiences, 4)

    for old, new in zip(before, after, strict=True):
        assert torch.allclose(old.end_h, new.end_h, atol=1e-5)
        assert new.anchor == new.prox  # the anchor is the policy as it is now
        assert new.anchor != old.anchor


@pytest.mark.usefixtures("few_tell_what_serves")
def test_the_anchor_moves_to_what_serves_once_it_is_so_many_releases_newer(
    settings: Settings, make_sample: MakeSample
) -> None:
    learner = msgspec.structs.replace(settings.learner, anchor_refresh_releases=2)
    settings = msgspec.structs.replace(settings, learner=learner)
    train = new_train_state(load_policy(settings), learner)
    progress = Progress(policy="assistant", base=train.policy.base)
    anchors = []
    for batch in range(4):
        served = max(batch - 1, 0)  # a release serves one batch after it was made
        progress = advance(train, progress, _served_by(make_sample, *[served] * 8), settings)
        anchors.append(progress.anchor)
        progress = _publish(settings, train, progress)

    by_number = {number: version for version, number in progress.versions.items()}
    assert anchors == [BASE_VERSION, BASE_VERSION, BASE_VERSION, by_number[2]]
    assert train.anchor.version == by_number[2]


def test_a_version_that_is_gone_or_changed_is_no_anchor(
    settings: Settings, make_sample: MakeSample, caplog: pytest.LogCaptureFixture
) -> None:
    train = new_train_state(load_policy(settings), settings.learner)
    start = Progress(policy="assistant", base=train.policy.base)
    progress = _publish(
        settings, train, advance(train, start, _served_by(make_sample, *[0] * 8), settings)
    )
    [version] = progress.versions
    root = versions_directory(settings)
    assert refreshed(Anchor(), progress.versions, 1, root, 0) == Anchor()
    assert refreshed(Anchor(), progress.versions, 1, root, 1).version == version

    weights = root / version / ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert refreshed(Anchor(), progress.versions, 1, root, 1) == Anchor()
    assert refreshed(Anchor(), progress.versions, 1, Path("gone"), 1) == Anchor()
    assert refreshed(Anchor(), {}, 1, root, 1) == Anchor()  # a replay has not made it yet
    assert "the anchor stays base" in caplog.text


def test_a_checkpoint_brings_the_anchor_back_bit_for_bit(
    settings: Settings, tmp_path: Path
) -> None:
    train = new_train_state(load_policy(settings), settings.learner)
    train.anchor = Anchor("v7", _moved(train.policy, 1))
    _moved(train.policy, 2)
    progress = Progress(policy="assistant", base=train.policy.base, anchor="v7")
    checkpoint.save(tmp_path, train, progress, keep=1)

    again = new_train_state(load_policy(settings), settings.learner)
    assert checkpoint.restore(tmp_path, again) == progress

    assert again.anchor.version == "v7"
    assert again.anchor.weights.keys() == train.anchor.weights.keys()
    for name, tensor in train.anchor.weights.items():
        assert torch.equal(again.anchor.weights[name], tensor)
