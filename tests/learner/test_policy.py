"""Log-probabilities, and adapters on disk."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from contracts.errors import SettingsError
from contracts.events import Sampling
from contracts.settings import Policy, Settings
from learner.adapters import TARGET_MODULES, load_policy, save_adapter
from learner.buckets import TokenSequence, bucketed
from serving.generation import Job, LocalModel

SEQUENCES = [
    TokenSequence((10, 11, 12, 13), (20, 21, 3)),
    TokenSequence((14,), (22, 3), 0.7),
    TokenSequence((15, 16, 17, 18, 19, 20, 21), (23,), 1.3),
    TokenSequence((10, 30), (24, 25, 26, 27, 3)),
    TokenSequence((11, 31, 32), (28, 3)),
]
SMALL: dict[str, object] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
GATED: dict[str, object] = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}
ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
FUSED = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
PROJECTED = {"ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 16}


def _tiny(kind: str, shape: dict[str, object], tokenizer: Path, directory: Path) -> None:
    torch.manual_seed(5)
    config = AutoConfig.for_model(kind, **shape, **ENDS)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)


def _on(settings: Settings, directory: Path) -> Settings:
    return msgspec.structs.replace(settings, policy=Policy(model=str(directory)))


@pytest.mark.parametrize(
    ("kind", "shape", "adapted"),
    [
        ("gpt2", {**SMALL, "n_positions": 64}, {"c_attn", "c_proj", "c_fc"}),
        ("gpt_neox", {**SMALL, "intermediate_size": 64}, FUSED),
        ("bloom", SMALL, FUSED),
        ("opt", {**SMALL, **PROJECTED}, {"q_proj", "k_proj", "v_proj"}),
        ("phi3", GATED, {"o_proj", "down_proj"}),
        ("qwen2", GATED, set(TARGET_MODULES)),
        ("gemma", {**GATED, "head_dim": 16}, set(TARGET_MODULES)),
    ],
)
def test_an_adapter_learned_on_any_architecture_serves_with_the_same_logprobs(
    kind: str,
    shape: dict[str, object],
    adapted: set[str],
    settings: Settings,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    base, saved = tmp_path / "base", tmp_path / "adapter"
    saved.mkdir()
    _tiny(kind, shape, tiny_model, base)
    policy = load_policy(_on(settings, base))
    assert {name.split(".")[-3] for name in policy.adapters()} == adapted
    descent = torch.optim.SGD(policy.adapters().values(), lr=1.0)
    for _ in range(2):  # the first step moves B alone: A's gradient is 0 while B is
        descent.zero_grad()
        for bucket in bucketed(SEQUENCES, 16):
            logp_bt, end_bh = policy.score(bucket)
            assert end_bh.shape[1] == policy.hidden_size
            (-logp_bt[bucket.mask_bt].mean()).backward()
        descent.step()
    learned = policy.logprobs(SEQUENCES, 16)
    assert learned != policy.logprobs(SEQUENCES, 16, adapted=False)
    save_adapter(policy, saved)
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is (kind == "gpt2")  # alone it stores its weights transposed

    engine = LocalModel(str(base), 64)
    engine.load_adapter("learned", saved)
    network = engine._select("learned")

    for sequence, row in zip(SEQUENCES, learned, strict=True):
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]])
        with torch.no_grad():
            logits = network(input_ids=ids).logits[0] / sequence.temperature
        first = len(sequence.prompt_ids) - 1
        rows = torch.log_softmax(logits, dim=-1)[first:-1]
        wanted = rows.gather(1, torch.tensor(sequence.response_ids)[:, None])[:, 0].tolist()
        assert row == pytest.approx(wanted, abs=1e-5)


def test_the_engine_gives_the_head_rows_that_need_no_copy_of_its_weights(
    settings: Settings, tmp_path: Path
) -> None:
    """torch copies frozen weights once per row of a batch when the rows are not contiguous."""
    save_adapter(load_policy(settings), tmp_path)
    engine = LocalModel(settings.policy.model, 64)
    engine.load_adapter("learned", tmp_path)
    seen = []
    head = engine._base.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    sampling = Sampling(max_tokens=3, seed=1)
    jobs = [Job([9, 10, 11], sampling, lambda *_: None, lambda: False) for _ in range(2)]

    engine.generate("learned", jobs)

    assert seen
    assert all(seen)


def test_an_architecture_without_layers_to_adapt_is_refused_by_name(
    settings: Settings, tiny_model: Path, tmp_path: Path
) -> None:
    shape = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    _tiny("mamba", shape, tiny_model, tmp_path)

    with pytest.raises(SettingsError, match="MambaForCausalLM, which takes no adapters; give"):
        load_policy(_on(settings, tmp_path))


def test_bucketed_logprobs_equal_those_of_a_plain_forward_pass(settings: Settings) -> None:
    policy = load_policy(settings)

    found = policy.logprobs(SEQUENCES, 16)

    for sequence, row in zip(SEQUENCES, found, strict=True):
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0] / sequence.temperature
        plain = torch.log_softmax(logits, dim=-1)
        first = len(sequence.prompt_ids) - 1
        wanted = [
            float(plain[first + place, token]) for place, token in enumerate(sequence.response_ids)
        ]
        assert row == pytest.approx(wanted, abs=2e-6)


def test_fresh_adapters_change_nothing_and_equal_seeds_give_equal_ones(settings: Settings) -> None:
    first, second = load_policy(settings), load_policy(settings)

    assert first.logprobs(SEQUENCES, 32) == first.logprobs(SEQUENCES, 32, adapted=False)
    for name, parameter in first.adapters().items():
        assert torch.equal(parameter, second.adapters()[name])
    assert len(first.adapters()) == 2 * 2 * len(TARGET_MODULES)


def test_a_saved_adapter_loads_in_peft_and_gives_the_same_logprobs(
    settings: Settings, tmp_path: Path, tiny_model: Path
) -> None:
    policy = load_policy(settings)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.adapters().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_adapter(policy, tmp_path)

    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32"), str(tmp_path)
    )

    sequence = SEQUENCES[0]
    ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, policy.model(input_ids=ids).logits)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == policy.base
    assert str(tiny_model) not in (tmp_path / "adapter_config.json").read_text()


def test_the_base_is_named_by_its_content_wherever_it_lies(
    settings: Settings, tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in tiny_model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    moved = msgspec.structs.replace(
        settings, policy=msgspec.structs.replace(settings.policy, model=str(copy))
    )

    assert load_policy(moved).base == load_policy(settings).base


def test_a_rank_the_engine_would_refuse_is_refused_at_once(settings: Settings) -> None:
    learner = msgspec.structs.replace(settings.learner, lora_rank=64)

    with pytest.raises(SettingsError, match="max_lora_rank"):
        load_policy(msgspec.structs.replace(settings, learner=learner))
