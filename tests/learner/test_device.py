"""The policy is on one device, whatever that is; batches and losses are on the CPU.

No GPU is needed: tensors on torch's "meta" device have shape and device but no content, and cannot
be mixed with others; fake ones say where a kernel of a GPU would put its result.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode

from contracts.errors import SettingsError
from contracts.processor import KERNELS_KEPT
from contracts.settings import Policy as PolicySettings
from contracts.settings import Settings
from learner import device as devices
from learner.adapters import load_policy
from learner.body import Body, blocks_of, packed
from learner.buckets import TokenSequence, bucket_of
from learner.causal_attention import Attention, Sequences, attend
from learner.device import adam, chosen_device, prepare
from tests.learner.families import FAMILIES, make_family

SEQUENCES = [TokenSequence((9, 10, 11), (20, 3)), TokenSequence((12,), (21, 22, 3), 0.7)]
META = torch.device("meta")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_blocks_and_head_make_nothing_on_another_device_than_the_policys(
    kind: str, recompute: bool, settings: Settings, tmp_path: Path
) -> None:
    on = PolicySettings(model=str(make_family(kind, tmp_path)))
    policy = load_policy(msgspec.structs.replace(settings, policy=on))
    policy.model.to(META)
    decoder = policy.model.get_base_model().get_decoder()
    body = Body(decoder, blocks_of(decoder), recompute=recompute)
    bucket = bucket_of(SEQUENCES)

    rows = body.run(packed(bucket, META), adapted=True)
    count = len(rows)
    logp = policy.head.logprobs(
        rows, torch.zeros(count, dtype=torch.long, device=META), torch.ones(count, device=META)
    )
    logp.sum().backward()

    assert count == sum(len(one.response_ids) for one in SEQUENCES)
    assert logp.device == META
    for parameter in policy.adapters().values():
        assert parameter.grad is not None
        assert parameter.grad.device == META
        assert parameter.grad.shape == parameter.shape


@pytest.mark.parametrize("window", [None, 5])
def test_attention_on_a_gpu_is_the_kernel_for_sequences_of_any_length(window: int | None) -> None:
    with FakeTensorMode(), torch.no_grad():
        q = torch.empty(12, 4, 64, device="cuda", dtype=torch.bfloat16)
        k = torch.empty(12, 2, 64, device="cuda", dtype=torch.bfloat16)
        bounds = torch.empty(3, device="cuda", dtype=torch.int32)
        calls: list[str] = []
        with _Seen(calls):
            found = attend(q, k, k, Attention(1.0, None, window), Sequences((5, 7), bounds))

    assert (found.shape, found.device.type, found.dtype) == (q.shape, "cuda", torch.bfloat16)
    assert calls == ["torch_attn._varlen_attn.default"]


class _Seen(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch gives it no types
        self._calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # torch's own signature
        self._calls.append(str(func))
        return func(*args, **(kwargs or {}))


def test_memory_is_saved_by_computing_again_with_the_same_result(
    settings: Settings, tmp_path: Path
) -> None:
    found = []
    on = PolicySettings(model=str(make_family("qwen3", tmp_path)))
    for recompute in (False, True):
        learner = msgspec.structs.replace(settings.learner, recompute=recompute)
        chosen = msgspec.structs.replace(settings, policy=on, learner=learner)
        policy = load_policy(chosen)
        logp, _ = policy.score(bucket_of(SEQUENCES))
        logp.sum().backward()
        found.append((logp, [one.grad for one in policy.adapters().values()]))

    assert torch.equal(found[0][0], found[1][0])
    for first, second in zip(found[0][1], found[1][1], strict=True):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device("auto") == chosen_device("cpu") == torch.device("cpu")
    with pytest.raises(SettingsError, match="torch finds no GPU"):
        chosen_device("cuda")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv(devices.PLACE, "1")
    assert chosen_device("auto") == torch.device("cuda", 1)
    assert chosen_device("cpu") == torch.device("cpu")
    monkeypatch.setenv(devices.PLACE, "2")
    with pytest.raises(SettingsError, match="LOCAL_RANK is 2, but there are 2 GPUs"):
        chosen_device("auto")


def test_the_cpus_optimizer_steps_by_the_rate() -> None:
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]

    optimizer = adam(parameters, 0.1)
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    optimizer.step()

    assert all(torch.allclose(one, torch.full((3,), 0.9)) for one in parameters)
    assert [group["fused"] for group in optimizer.param_groups] == [True]


MULTIPLY = """
import resource, torch
from learner.device import prepare
from learner.products import times_transposed
prepare(torch.device("cpu"))
torch.set_num_threads(1)
weight = torch.ones(192, 192)
for count in range(100, 600):
    times_transposed(torch.ones(count, 192), weight)
    if count == 199:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
"""Prints by how many MB a process grows over products of 400 different numbers of rows."""


def test_what_batches_of_new_sizes_leave_behind_is_bounded() -> None:
    """A learner whose every batch has other lengths grew by 100 MB an update."""
    environment = {name: word for name, word in os.environ.items() if name not in KERNELS_KEPT}
    grown = subprocess.run(
        [sys.executable, "-c", MULTIPLY],
        env=environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert float(grown.stdout) < 20.0


def test_what_was_said_of_kernels_is_kept_and_the_cpu_adds_in_one_order_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = KERNELS_KEPT
    monkeypatch.setenv(first, "3")
    monkeypatch.delenv(second, raising=False)
    prepare(torch.device("cpu"))
    assert (os.environ[first], os.environ[second]) == ("3", KERNELS_KEPT[second])
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_a_gpu_what_adds_in_any_order_is_refused_and_not_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a warning, FlashAttention's backward pass would go on as it likes."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    module: Any = deterministic
    filled = module.fill_uninitialized_memory
    try:
        prepare(torch.device("cuda", 0))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not module.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        module.fill_uninitialized_memory = filled
