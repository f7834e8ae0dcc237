"""Written-out blocks give what the models' own modules give, forward and backward."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from contracts.settings import Policy as PolicySettings
from contracts.settings import Settings
from learner.adapters import Adapting, adapt, load_policy
from learner.buckets import TokenSequence, bucket_of, bucketed
from learner.policy import Policy
from tests.learner.families import FAMILIES, OTHERS, make_family

TOKENS = 64


LENGTHS = ((1, 1), (3, 9), (20, 4), (7, 7), (30, 12))


def _sequences(lengths: tuple[tuple[int, int], ...] = LENGTHS) -> list[TokenSequence]:
    rng = random.Random(3)
    return [
        TokenSequence(
            tuple(rng.randrange(4, 48) for _ in range(prompt)),
            tuple(rng.randrange(4, 48) for _ in range(response)),
            rng.choice((0.7, 1.0, 1.3)),
        )
        for prompt, response in lengths
    ]


def _policy(settings: Settings, directory: Path, dtype: Any = "float32") -> Policy:
    """A policy whose adapters are no longer at their beginning."""
    learner = msgspec.structs.replace(settings.learner, base_dtype=dtype)
    on = PolicySettings(model=str(directory))
    policy = load_policy(msgspec.structs.replace(settings, policy=on, learner=learner))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.adapters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def _gradients(policy: Policy) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in policy.adapters().items():
        assert parameter.grad is not None
        found[name], parameter.grad = parameter.grad, None
    return found


def _plain(policy: Policy, sequences: list[TokenSequence]) -> tuple[torch.Tensor, Any]:
    """Log-probabilities sequence by sequence through the model itself, and their gradients."""
    rows = []
    for one in sequences:
        ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
        logits = policy.model(input_ids=ids).logits[0].float() / one.temperature
        logp = torch.log_softmax(logits, -1)[len(one.prompt_ids) - 1 : -1]
        rows.append(logp.gather(1, torch.tensor(one.response_ids)[:, None])[:, 0])
        _weighed(rows[-1]).backward()
    return torch.cat(rows).detach(), _gradients(policy)


def _ours(policy: Policy, sequences: list[TokenSequence]) -> tuple[torch.Tensor, Any]:
    rows: dict[int, torch.Tensor] = {}
    for bucket in bucketed(sequences, TOKENS):
        logp_bt, _ = policy.score(bucket)
        for place, row, mask in zip(bucket.members, logp_bt, bucket.mask_bt, strict=True):
            rows[place] = row[mask]
        torch.stack([_weighed(rows[place]) for place in bucket.members]).sum().backward()
    return torch.cat([rows[place].detach() for place in sorted(rows)]), _gradients(policy)


def _weighed(logp_t: torch.Tensor) -> torch.Tensor:
    return (logp_t * torch.linspace(-1.0, 1.0, len(logp_t))).sum()


def _error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The relative error of the whole gradient."""
    apart = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted)
    return float((apart / sum(float(one.square().sum()) for one in wanted.values())) ** 0.5)


@pytest.mark.parametrize("kind", [*FAMILIES, *OTHERS])
def test_logprobs_and_gradients_are_those_of_the_plain_forward_pass(
    kind: str, settings: Settings, tmp_path: Path
) -> None:
    policy = _policy(settings, make_family(kind, tmp_path))
    assert (policy.blocks is not None) is (kind in FAMILIES)
    sequences = _sequences()

    wanted, slopes = _plain(policy, sequences)
    found, ours = _ours(policy, sequences)

    apart, error = float((found - wanted).abs().max()), _error(ours, slopes)
    print(f"{kind}: log-probabilities {apart:.1e}, gradient {error:.1e}")
    assert apart < 3e-6
    assert error < 2e-5


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_base_alone_is_scored_without_the_adapters(
    kind: str, settings: Settings, tmp_path: Path
) -> None:
    policy = _policy(settings, make_family(kind, tmp_path))
    sequences = _sequences()

    found = policy.logprobs(sequences, TOKENS, adapted=False)

    with torch.no_grad(), policy.model.disable_adapter():
        for one, row in zip(sequences, found, strict=True):
            ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
            logits = policy.model(input_ids=ids).logits[0] / one.temperature
            logp = torch.log_softmax(logits, -1)[len(one.prompt_ids) - 1 : -1]
            wanted = logp.gather(1, torch.tensor(one.response_ids)[:, None])[:, 0]
            assert row == pytest.approx(wanted.tolist(), abs=3e-6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_in_bfloat16_they_are_as_near_to_float32_as_those_of_the_plain_pass(
    kind: str, settings: Settings, tmp_path: Path
) -> None:
    directory = make_family(kind, tmp_path)
    sequences = _sequences()
    wanted, slopes = _plain(_policy(settings, directory), sequences)
    policy = _policy(settings, directory, "bfloat16")

    plain, plain_slopes = _plain(policy, sequences)
    found, ours = _ours(policy, sequences)

    errors = [float((one - wanted).square().mean().sqrt()) for one in (found, plain)]
    assert errors[0] < 1.2 * errors[1] + 1e-3
    assert _error(ours, slopes) < 1.2 * _error(plain_slopes, slopes) + 1e-3


def test_long_sequences_are_attended_to_in_blocks_with_the_same_result(
    settings: Settings, tmp_path: Path
) -> None:
    policy = _policy(settings, make_family("llama", tmp_path))
    sequences = _sequences(((250, 60), (100, 50), (290, 10)))

    wanted, slopes = _plain(policy, sequences)
    found, ours = _ours(policy, sequences)

    assert float((found - wanted).abs().max()) < 1e-5
    assert _error(ours, slopes) < 2e-5


def test_a_model_that_only_looks_like_one_of_ours_is_run_by_its_own_modules(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = _policy(settings, make_family("granite", tmp_path))

    assert policy.blocks is None
    assert "GraniteModel looks like a model of ours, but differs by" in caplog.text


def test_gradients_add_up_over_buckets_and_repeat_bit_for_bit(
    settings: Settings, tmp_path: Path
) -> None:
    policy = _policy(settings, make_family("qwen3", tmp_path))
    sequences = _sequences()

    first, second = _ours(policy, sequences), _ours(policy, sequences)

    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.parametrize("adapted", [0, 1])
def test_answers_states_of_a_base_adapted_in_its_last_blocks_alone_are_the_modules_own(
    adapted: int, settings: Settings, tmp_path: Path
) -> None:
    directory = make_family("llama", tmp_path)
    wanted = Adapting(rank=8, alpha=16.0, seed=1, blocks=2, adapted=adapted)
    trunk = adapt(str(directory), wanted)
    assert trunk.blocks is not None
    with torch.no_grad():
        for parameter in trunk.adapters().values():
            parameter.add_(0.1)
    bucket = bucket_of(_sequences())
    parameters = list(trunk.adapters().values())

    found = trunk.answer_rows(bucket)
    slopes = torch.autograd.grad(found.square().sum(), parameters)

    decoder = trunk.model.get_base_model().get_decoder()
    modules = decoder(input_ids=bucket.ids_bl, use_cache=False).last_hidden_state
    rows_b1 = torch.arange(len(bucket.members))[:, None]
    wanted_nh = modules[rows_b1, bucket.rows_bt + 1][bucket.mask_bt]
    wanted_slopes = torch.autograd.grad(wanted_nh.square().sum(), parameters)
    assert torch.allclose(found, wanted_nh, atol=3e-5)
    for one, other in zip(slopes, wanted_slopes, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
