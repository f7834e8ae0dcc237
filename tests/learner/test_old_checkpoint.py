"""A checkpoint of an earlier release is refused with a cure, and not half applied."""

from __future__ import annotations

import msgspec
import pytest
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
