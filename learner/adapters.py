"""LoRA adapters (Hu et al., arXiv 2106.09685): put on a base, which makes a policy of it, written
to disk and put back.

The format on disk is PEFT's, as vLLM loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.pytorch_utils import Conv1D

from contracts.codec import to_json
from contracts.errors import SettingsError
from contracts.settings import Settings
from learner.base_model import base_identity, load_base
from learner.body import body_of
from learner.device import ON_CPU, Placement, chosen_device, prepare
from learner.head import check_head
from learner.policy import Policy
from learner.ranks import ALONE, Ranks, shard

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The layers adapted in a model that has layers of these names, as Llama's descendants have."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
HEAD_TOLERANCE = 0.02
"""Largest difference between our logits and the model's own: rounding in bfloat16 is below it."""


class Adapting(Struct, frozen=True, kw_only=True):
    """How a base is adapted: rank and alpha of the adapters, and the seed of their first weights.

    Of the base's blocks the first ``blocks`` are kept, and of these the last ``adapted`` have
    adapters; 0: all of them.
    """

    rank: int
    alpha: float
    seed: int
    blocks: int = 0
    adapted: int = 0


def load_policy(settings: Settings, ranks: Ranks = ALONE) -> Policy:
    """Load ``settings.policy.model`` and put fresh adapters on it (they change nothing yet).

    Adapters are float32. The same seed gives the same adapters. Raises SettingsError for a rank
    that the engine would refuse, for a model whose head cannot be called apart and for one without
    layers to adapt. The transformers engine serves whatever loads here; vLLM 0.32 has no adapters
    for some architectures, GPT-2, GPT-J, BLOOM and Falcon among them.
    """
    config = settings.learner
    if config.lora_rank > settings.engine.max_lora_rank:
        raise SettingsError(
            f"learner.lora_rank is {config.lora_rank}, but engine.max_lora_rank is "
            f"{settings.engine.max_lora_rank}: the engine would refuse it; raise the latter"
        )
    wanted = Adapting(rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
    placement = Placement(
        device=config.device,
        dtype=config.base_dtype,
        recompute=config.recompute,
        shard=config.shard_base,
    )
    return adapt(settings.policy.model, wanted, placement, ranks)


def adapt(
    name: str, wanted: Adapting, placement: Placement = ON_CPU, ranks: Ranks = ALONE
) -> Policy:
    """Load a base and put fresh adapters on it; SettingsError as `load_policy` says.

    With a placement that says so the base is spread over the ``ranks``, if there are several.
    """
    device = chosen_device(placement.device)
    prepare(device)
    model = load_base(name, placement.dtype, device, wanted.blocks)
    adapted = _with_adapters(model, name, wanted)
    sharded = placement.shard and ranks.size > 1
    body = body_of(model.get_decoder(), wanted.seed, recompute=placement.recompute)
    policy = Policy(
        adapted,
        AutoTokenizer.from_pretrained(name),
        base_identity(name, model),
        wanted.rank,
        wanted.alpha,
        blocks=None if sharded else body,
        ranks=ranks,
    )
    apart = check_head(model, policy.head)
    if not apart <= HEAD_TOLERANCE:
        raise SettingsError(
            f"policy.model {name} is a {type(model).__name__}, which scales its logits in a way "
            f"that the learner does not know (they differ by {apart:.1%}); give a model that scales"
            " them as Llama, Gemma, Cohere or Granite do"
        )
    if sharded:
        shard(model.get_decoder().layers, device, ranks)
    return policy


def _with_adapters(model: Any, name: str, wanted: Adapting) -> Any:
    """Return PEFT's model around a base; SettingsError for one without layers to adapt."""
    kept = model.config.num_hidden_layers
    upper = list(range(kept - wanted.adapted, kept)) if 0 < wanted.adapted < kept else None
    lora = LoraConfig(
        r=wanted.rank,
        lora_alpha=wanted.alpha,
        target_modules=list(target_modules(model)),
        layers_to_transform=upper,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(wanted.seed)
        try:
            adapted = get_peft_model(model, lora)
        except ValueError as error:
            raise SettingsError(
                f"policy.model {name} is a {type(model).__name__}, which takes no adapters; give a "
                "transformer of linear layers, such as Llama, Qwen2, Gemma, Phi-3, OPT, GPT-NeoX "
                f"or GPT-2 ({error})"
            ) from error
    return adapted.eval()


def target_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers to adapt: Llama's, else every linear layer of the blocks."""
    modules = [(name.split("."), module) for name, module in model.named_modules()]
    if not {path[-1] for path, _ in modules}.isdisjoint(TARGET_MODULES):
        return TARGET_MODULES
    linear = {
        path[-1]
        for path, module in modules
        if isinstance(module, nn.Linear | Conv1D) and any(part.isdigit() for part in path)
    }
    return tuple(sorted(linear))


def save_adapter(policy: Policy, directory: Path) -> None:
    """Write the adapters in PEFT's format, as vLLM loads them; equal weights give equal bytes."""
    weights = {name: tensor.detach().cpu().clone() for name, tensor in policy.adapters().items()}
    save_file(weights, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    lora = policy.model.peft_config["default"]
    config = {
        "base_model_name_or_path": policy.base,
        "bias": "none",
        "fan_in_fan_out": lora.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(policy.alpha) if policy.alpha == int(policy.alpha) else policy.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": policy.rank,
        "target_modules": sorted(lora.target_modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (directory / ADAPTER_CONFIG).write_bytes(msgspec.json.format(to_json(config), indent=2))


def restore_adapters(policy: Policy, weights: dict[str, Tensor]) -> None:
    """Set the adapters to weights as `Policy.adapters` names them.

    SettingsError for weights of another base or rank; then nothing is set.
    """
    parameters = policy.adapters()
    if parameters.keys() != weights.keys():
        different = sorted(parameters.keys() ^ weights.keys())[:3]
        raise SettingsError(
            f"adapter weights do not fit this base ({different}, ...); "
            "use another policy.name for another model or rank"
        )
    for name, parameter in parameters.items():
        if weights[name].shape != parameter.shape:
            raise SettingsError(_of_another_shape(policy, name, weights[name]))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _of_another_shape(policy: Policy, name: str, weight: Tensor) -> str:
    found, wanted = tuple(weight.shape), tuple(policy.adapters()[name].shape)
    rank = found[0] if "lora_A" in name else found[-1]
    return (
        f"the adapter weights {name} are {found}, of rank {rank}, and those of learner.lora_rank "
        f"{policy.rank} are {wanted}; set learner.lora_rank to {rank} again, or use another "
        "policy.name to start anew"
    )
