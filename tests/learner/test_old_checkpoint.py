"""A checkpoint of an earlier release is refused with a cure, and not half applied."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from contracts.errors import SettingsError
from contracts.manifest import file_sha256
from contracts.settings import Settings
from learner import checkpoint
from learner.adapters import load_policy
from learner.progress import Progress
from learner.train_state import new_train_state


def test_a_baseline_of_another_shape_is_refused(settings: Settings) -> None:
    train = new_train_state(load_policy(settings), settings.learner)
    progress = Progress(policy="assistant", base=train.policy.base)
    root = settings.state_dir / "checkpoints"
    directory = checkpoint.save(root, train, progress, keep=1)
    tensors = load_file(directory / checkpoint.TENSORS)
    for name in ("value/outer.weight", "value/outer.bias"):
        tensors[name] = tensors[name][:1].clone()
    save_file(tensors, directory / checkpoint.TENSORS)
    state = msgspec.json.decode((directory / checkpoint.STATE).read_bytes())
    state["tensors_sha256"] = file_sha256(directory / checkpoint.TENSORS)
    (directory / checkpoint.STATE).write_bytes(msgspec.json.encode(state))

    with pytest.raises(SettingsError, match=r"policy\.name"):
        checkpoint.restore(root, train)


def test_a_rank_that_was_changed_is_refused_with_both_ranks(settings: Settings) -> None:
    train = new_train_state(load_policy(settings), settings.learner)
    progress = Progress(policy="assistant", base=train.policy.base)
    root = settings.state_dir / "checkpoints"
    checkpoint.save(root, train, progress, keep=1)
    wider = replace(settings, learner=replace(settings.learner, lora_rank=16))
    again = new_train_state(load_policy(wider), wider.learner)
    before = {name: one.clone() for name, one in again.policy.adapters().items()}

    with pytest.raises(SettingsError, match=r"lora_rank 16 .* set learner\.lora_rank to 8 again"):
        checkpoint.restore(root, again)
    assert all(one.equal(before[name]) for name, one in again.policy.adapters().items())
