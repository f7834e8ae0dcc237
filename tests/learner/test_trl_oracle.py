"""The losses and their gradients are those of TRL's own trainers, handed the same batch.

The trainers are built on the tiny model and asked for the loss of tensors given to them: nothing is
generated, and no step is taken. Gradients are compared over all weights of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import Struct
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner import pairs
from learner.buckets import Bucket, TokenSequence
from learner.losses import (
    Bounds,
    Terms,
    anchor_penalty,
    cispo,
    dpo,
    group_relative,
    grpo,
    kto,
    leave_one_out,
    ppo,
    rloo,
)
from learner.pairs import Correction

trl = pytest.importorskip("trl", reason="trl is in the dev extra alone: pip install -e .[dev]")
datasets = pytest.importorskip("datasets", reason="comes with trl")

BOUNDS = Bounds(clip_low=0.2, clip_high=0.28, importance_cap=1.5, beta=0.3)
LONGEST = 6
ROWS = [
    ((10, 11, 12), (20, 21, 22, 3)),
    ((13,), (23, 3)),
    ((14, 15, 16, 17), (24, 25, 26, 27, 28, 3)),
    ((18, 19), (29,)),
    ((10, 30, 31), (32, 33, 3)),
    ((34, 35), (36, 37, 38, 39, 3)),
]
ADVANTAGES = (1.0, -1.0, 0.5, -2.0, 2.0, -0.3)


class Case(Struct, frozen=True):
    """A model, the same one moved a little, and what four policies say of the rows."""

    model: Any
    reference: Any
    tokenizer: Any
    terms: Terms


def _load(directory: Path, seed: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _logprobs(model: Any) -> torch.Tensor:
    """Row by row, without padding; log-softmax over all logits."""
    found = []
    for prompt, response in ROWS:
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
        rows = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        chosen = rows.gather(1, torch.tensor(response)[:, None])[:, 0]
        found.append(torch.nn.functional.pad(chosen, (0, LONGEST - len(response))))
    return torch.stack(found)


@pytest.fixture
def case(tiny_model: Path) -> Case:
    model, reference = _load(tiny_model, 1), _load(tiny_model, 2)
    mask_bt = torch.tensor([[at < len(r) for at in range(LONGEST)] for _, r in ROWS])
    generator = torch.Generator().manual_seed(4)
    logp_bt = _logprobs(model)
    near = [
        (logp_bt + 0.5 * torch.randn(logp_bt.shape, generator=generator)).detach() * mask_bt
        for _ in range(2)
    ]
    terms = Terms(
        logp_bt=logp_bt,
        prox_bt=near[0],
        mu_bt=near[1],
        anchor_bt=_logprobs(reference).detach(),
        advantage_b=torch.tensor(ADVANTAGES),
        mask_bt=mask_bt,
    )
    return Case(model, reference, AutoTokenizer.from_pretrained(tiny_model), terms)


def _arguments(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": len(ROWS),
        "disable_tqdm": True,
    }


def _grouped(case: Case) -> dict[str, Any]:
    """The rows as GRPO and RLOO take them: prompts padded left, completions right."""
    widest = max(len(prompt) for prompt, _ in ROWS)
    return {
        "prompt_ids": torch.tensor([[0] * (widest - len(p)) + [*p] for p, _ in ROWS]),
        "prompt_mask": torch.tensor([[0] * (widest - len(p)) + [1] * len(p) for p, _ in ROWS]),
        "completion_ids": torch.tensor([[*r] + [0] * (LONGEST - len(r)) for _, r in ROWS]),
        "completion_mask": case.terms.mask_bt.long(),
        "advantages": case.terms.advantage_b,
        "num_items_in_batch": case.terms.mask_bt.sum(),
    }


def _whole(rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    """Rows as DPO and KTO take them: prompt and answer in one, padded right."""
    width = max(len(p) + len(r) for p, r in rows)
    pad = [width - len(p) - len(r) for p, r in rows]
    return {
        "input_ids": torch.tensor(
            [[*p, *r] + [0] * n for (p, r), n in zip(rows, pad, strict=True)]
        ),
        "attention_mask": torch.tensor(
            [[1] * (len(p) + len(r)) + [0] * n for (p, r), n in zip(rows, pad, strict=True)]
        ),
        "completion_mask": torch.tensor(
            [[0] * len(p) + [1] * len(r) + [0] * n for (p, r), n in zip(rows, pad, strict=True)]
        ),
    }


def _rewarding(rewards: list[float]) -> Callable[..., list[float]]:
    def reward(completions: list[Any], **_: Any) -> list[float]:
        return rewards[: len(completions)]

    return reward


def _prompts() -> Any:
    return datasets.Dataset.from_dict({"prompt": [f"w{n} w{n + 1}" for n in range(len(ROWS))]})


def _grpo_trainer(case: Case, tmp_path: Path, **changes: Any) -> Any:
    config = trl.GRPOConfig(
        **_arguments(tmp_path),
        num_generations=len(ROWS) // 2,
        max_completion_length=LONGEST,
        epsilon=BOUNDS.clip_low,
        epsilon_high=changes.pop("epsilon_high", BOUNDS.clip_high),
        **changes,
    )
    trainer = trl.GRPOTrainer(
        model=case.model,
        reward_funcs=_rewarding([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]),
        args=config,
        train_dataset=_prompts(),
        processing_class=case.tokenizer,
    )
    trainer.model.eval()  # the loss of what is given, not scaled for accumulation
    return trainer


def _agree(case: Case, theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """Equal values, and equal gradients of every weight of the model."""
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert float(theirs.detach()) != 0.0
    parameters = list(case.model.parameters())
    wanted = torch.autograd.grad(theirs, parameters)
    found = torch.autograd.grad(ours, parameters)
    for expected, gradient in zip(wanted, found, strict=True):
        assert float(expected.norm()) > 0.0
        assert float((gradient - expected).norm()) <= 2e-5 * float(expected.norm())


def test_the_importance_weighted_clipped_loss_and_the_anchor_penalty_are_grpos(
    case: Case, tmp_path: Path
) -> None:
    trainer = _grpo_trainer(
        case, tmp_path, loss_type="dr_grpo", beta=0.04, use_bias_correction_kl=False
    )
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    weight_bt = torch.exp(case.terms.prox_bt - case.terms.mu_bt).clamp(max=BOUNDS.importance_cap)
    given = {
        **_grouped(case),
        "old_per_token_logps": case.terms.prox_bt,
        "ref_per_token_logps": case.terms.anchor_bt,
        "importance_sampling_ratio": weight_bt,
    }
    theirs = trainer._compute_loss(case.model, given)

    value = ppo(case.terms, BOUNDS)
    penalty_bt = anchor_penalty(case.terms.logp_bt, case.terms.anchor_bt) * case.terms.mask_bt
    assert value.stopped_bt.any()
    assert (value.weight_bt == BOUNDS.importance_cap).any()
    ours = (value.loss_b.sum() + 0.04 * penalty_bt.sum()) / (len(ROWS) * LONGEST)
    _agree(case, theirs, ours)


@pytest.mark.parametrize("kind", ["dr_grpo", "grpo"])
def test_the_loss_of_practice_is_grpos(case: Case, tmp_path: Path, kind: str) -> None:
    trainer = _grpo_trainer(case, tmp_path, loss_type=kind, beta=0.0)
    given = {**_grouped(case), "old_per_token_logps": case.terms.prox_bt}
    theirs = trainer._compute_loss(case.model, given)

    loss_b = grpo(case.terms, BOUNDS).loss_b
    length_b = case.terms.mask_bt.sum(1) if kind == "grpo" else torch.tensor(LONGEST)
    _agree(case, theirs, (loss_b / length_b).mean())


def test_cispo_is_trls(case: Case, tmp_path: Path) -> None:
    trainer = _grpo_trainer(
        case, tmp_path, loss_type="cispo", beta=0.0, epsilon_high=BOUNDS.importance_cap
    )
    given = {**_grouped(case), "old_per_token_logps": case.terms.mu_bt}
    theirs = trainer._compute_loss(case.model, given)

    value = cispo(case.terms, BOUNDS)
    assert (value.weight_bt == BOUNDS.importance_cap).any()
    _agree(case, theirs, value.loss_b.sum() / case.terms.mask_bt.sum())


def test_rloo_is_trls(case: Case, tmp_path: Path) -> None:
    trainer = _rloo_trainer(case, tmp_path)
    old_b = (case.terms.prox_bt * case.terms.mask_bt).sum(1)
    theirs = trainer._compute_loss(case.model, {**_grouped(case), "old_logps": old_b})

    value = rloo(case.terms, BOUNDS)
    assert value.stopped_bt.any()
    _agree(case, theirs, value.loss_b.mean())


def _rloo_trainer(case: Case, tmp_path: Path) -> Any:
    config = trl.RLOOConfig(
        **_arguments(tmp_path),
        num_generations=len(ROWS) // 2,
        max_completion_length=LONGEST,
        beta=0.0,
        epsilon=BOUNDS.clip_low,
        epsilon_high=BOUNDS.clip_high,
    )
    trainer = trl.RLOOTrainer(
        model=case.model,
        reward_funcs=_rewarding([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]),
        args=config,
        train_dataset=_prompts(),
        processing_class=case.tokenizer,
    )
    trainer.model.eval()
    return trainer


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_advantages_of_groups_are_trls(case: Case, tmp_path: Path, kind: str) -> None:
    trainer = (_grpo_trainer if kind == "grpo" else _rloo_trainer)(case, tmp_path)
    trainer.model.train()
    asked = [{"prompt": f"w{number} w9"} for number in (1, 1, 1, 2, 2, 2)]
    theirs = trainer._generate_and_score_completions(asked)["advantages"]

    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    ours = (group_relative if kind == "grpo" else leave_one_out)(rewards)
    assert torch.allclose(theirs, ours.flatten(), atol=1e-6)


def test_dpo_is_trls(case: Case, tmp_path: Path) -> None:
    trainer = trl.DPOTrainer(
        model=case.model,
        ref_model=case.reference,
        args=trl.DPOConfig(**_arguments(tmp_path), beta=BOUNDS.beta),
        train_dataset=datasets.Dataset.from_dict(
            {"prompt": ["w1", "w2"], "chosen": ["w3", "w4"], "rejected": ["w5", "w6"]}
        ),
        processing_class=case.tokenizer,
    )
    trainer.model.eval()
    theirs = trainer._compute_loss(case.model, _whole(ROWS), return_outputs=False)

    _agree(case, theirs, dpo(case.terms, BOUNDS).loss_b.sum() / (len(ROWS) // 2))


class _Plain:
    """Stands for the policy: what the trainers' own model says of a bucket."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def score(self, bucket: Bucket) -> tuple[torch.Tensor, None]:
        logp_blv = self._model(input_ids=bucket.ids_bl).logits.log_softmax(-1)
        rows_btv = logp_blv[torch.arange(len(bucket.members))[:, None], bucket.rows_bt]
        return rows_btv.gather(2, bucket.targets_bt[:, :, None])[:, :, 0], None


def test_imitation_is_trls_supervised_fine_tuning(case: Case, tmp_path: Path) -> None:
    """Theirs is the mean over tokens, ours the sum; the given answers of pairs are not imitated."""
    trainer = trl.SFTTrainer(
        model=case.model,
        args=trl.SFTConfig(**_arguments(tmp_path), completion_only_loss=True),
        train_dataset=datasets.Dataset.from_dict(
            {"prompt": ["w1", "w2"], "completion": ["w3", "w4"]}
        ),
        processing_class=case.tokenizer,
    )
    trainer.model.eval()
    asked = _whole(ROWS)
    labels = asked["input_ids"].masked_fill(asked.pop("completion_mask") == 0, -100)
    theirs = trainer.compute_loss(case.model, {**asked, "labels": labels})

    given = TokenSequence((10, 11, 12), (40, 3))
    corrections = [Correction(TokenSequence(*row), 1.0) for row in ROWS]
    corrections[0] = replace(
        corrections[0], given=given, wanted_anchor=(-1.0,) * 4, given_anchor=(-1.0,) * 2
    )
    policy: Any = _Plain(case.model)
    groups = [corrections[:1], corrections[1:]]
    imitated = sum(pairs._losses(policy, group, BOUNDS)[0] for group in groups)
    _agree(case, theirs, imitated / case.terms.mask_bt.sum())


@pytest.mark.parametrize("drift", ["above", "below"])
def test_kto_is_trls_where_every_advantage_is_one(case: Case, tmp_path: Path, drift: str) -> None:
    labels = [True, False, True, False, True, False]
    trainer = trl.KTOTrainer(
        model=case.model,
        ref_model=case.reference,
        args=trl.KTOConfig(**_arguments(tmp_path), beta=BOUNDS.beta),
        train_dataset=datasets.Dataset.from_dict(
            {
                "prompt": [f"w{n}" for n in range(6)],
                "completion": [f"w{n} w{n + 1}" for n in range(6)],
                "label": labels,
            }
        ),
        processing_class=case.tokenizer,
    )
    trainer.model.eval()
    moved_b = ((case.terms.logp_bt - case.terms.anchor_bt) * case.terms.mask_bt).sum(1).detach()
    # TRL takes its reference point from a batch of its own: here the rows that moved most or least.
    order = torch.argsort(moved_b).tolist()
    few = order[-3:] if drift == "above" else order[:3]
    reference = _whole([ROWS[place] for place in few])
    given = {
        **_whole(ROWS),
        **{f"KL_{name}": value for name, value in reference.items()},
        "label": torch.tensor(labels),
    }
    theirs = trainer._compute_loss(case.model, given, return_outputs=False)

    point = max(float(moved_b[few].mean()), 0.0)
    assert (point > 0.0) is (drift == "above")
    advantage_b = torch.tensor([1.0 if label else -1.0 for label in labels])
    terms = replace(case.terms, advantage_b=advantage_b, drift=point)
    ours = kto(terms, BOUNDS).loss_b.mean() * BOUNDS.beta / 4.0
    _agree(case, theirs, ours)
