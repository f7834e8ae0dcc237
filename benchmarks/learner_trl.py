"""The peer in the learner's benchmark: ``python -m benchmarks.learner_trl ORDER``, on TRL alone.

TRL's own `GRPOTrainer.train()` runs; only what it would generate is handed in: the logged batch,
padded as it pads, with old and reference log-probabilities by its own methods where it would take
them. The loss is ours: dr_grpo with the same constants, importance weights truncated at 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad, use_adapter

from benchmarks.learner_turns import Turns

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FOREVER = 1_000_000
CAP = 2.0


class NoMoreTurns(Exception):  # noqa: N818 - it ends the training
    """There are no more updates to run."""


class Logged(GRPOTrainer):  # type: ignore[misc] # TRL is not in this environment
    """A GRPO trainer to whom the generated batch is handed."""

    turns: Turns
    batch: list[dict[str, Any]]
    logged: dict[str, float]
    begun = False

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        if self.begun:
            self.turns.end(**self.logged)
        self.begun = self.turns.begin()
        if not self.begun:
            raise NoMoreTurns
        prompts, prompt_mask = self._padded("prompt", "left")
        answers, answer_mask = self._padded("response", "right")
        found = {
            "prompt_ids": prompts,
            "prompt_mask": prompt_mask,
            "completion_ids": answers,
            "completion_mask": answer_mask,
            "advantages": torch.tensor([row["reward"] for row in self.batch]),
            "num_items_in_batch": answer_mask.sum(),
        }
        found = {name: value.to(self.accelerator.device) for name, value in found.items()}
        if self.beta:
            self._add_log_probabilities(found)
        return found

    def _add_log_probabilities(self, found: dict[str, Any]) -> None:
        """Add what it has with a reference: old and reference log-probabilities, and weights."""
        prompts, prompt_mask = found["prompt_ids"], found["prompt_mask"]
        answers, answer_mask = found["completion_ids"], found["completion_mask"]
        rows = [torch.tensor(row["logprobs"]) for row in self.batch]
        mu = pad(rows, padding_value=0.0, padding_side="right").to(answers.device)
        asked = (torch.cat([prompts, answers], 1), torch.cat([prompt_mask, answer_mask], 1))
        keep, size = answers.size(1), self.args.per_device_train_batch_size
        plain = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
        with torch.no_grad(), plain:
            old = self._get_per_token_logps_and_entropies(self.model, *asked, keep, size)[0]
            found["old_per_token_logps"] = old
            ratio = torch.exp((old - mu) * answer_mask)
            found["importance_sampling_ratio"] = ratio.clamp(max=CAP)
            with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None):
                ref = self._get_per_token_logps_and_entropies(self.model, *asked, keep, size)[0]
            found["ref_per_token_logps"] = ref

    def _padded(self, name: str, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [torch.tensor(row[name]) for row in self.batch]
        fill = self.processing_class.pad_token_id
        return (
            pad(rows, padding_value=fill, padding_side=side),
            pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side=side),
        )


class Told(TrainerCallback):
    """Keeps what the trainer logs of its last step."""

    def __init__(self, logged: dict[str, float]) -> None:
        self._logged = logged

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keep loss and gradient norm."""
        self._logged.update({n: float(logs[n]) for n in ("loss", "grad_norm") if n in logs})


def main(text: str) -> None:
    """Train until no more word comes."""
    order = json.loads(text)
    torch.set_num_threads(1)
    turns = Turns(_gpu_figures if order["device"] == "cuda" else None)
    with TemporaryDirectory() as folder:
        trainer = _trainer(order, turns, folder)
        try:
            trainer.train()
        except NoMoreTurns:
            return


def _gpu_figures() -> dict[str, float]:
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / (1 << 20)
    torch.cuda.reset_peak_memory_stats()
    return {"gpu_mb": peak}


def _trainer(order: dict[str, Any], turns: Turns, folder: str) -> Logged:
    batch = json.loads(Path(order["batch"]).read_text())
    whole, bfloat16 = order["kind"] == "whole", order["dtype"] == "bfloat16"
    size = order["micro_batch"]
    arguments = GRPOConfig(
        folder,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=len(batch) // size,
        steps_per_generation=len(batch) // size,
        num_generations=2,
        num_iterations=order["epochs"] if whole else 1,
        beta=order["kl_weight"] if whole else 0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        loss_type="dr_grpo",
        max_completion_length=order["length_scale"],
        temperature=1.0,
        learning_rate=order["learning_rate"],
        adam_beta1=0.9,
        adam_beta2=0.98,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        bf16=bfloat16,
        gradient_checkpointing=order["checkpointing"],
        max_steps=FOREVER,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=order["device"] == "cpu",
        seed=order["seed"],
    )
    torch.manual_seed(order["seed"])
    base = AutoModelForCausalLM.from_pretrained(order["model"], dtype=order["dtype"])
    lora = LoraConfig(
        r=order["lora_rank"],
        lora_alpha=2 * order["lora_rank"],
        target_modules=MODULES,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(order["seed"])
    trainer = Logged(
        model=get_peft_model(base, lora),
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "w2"}] * len(batch)),
        processing_class=AutoTokenizer.from_pretrained(order["model"]),
    )
    trainer.use_vllm = whole  # so that its loss takes the importance weights
    trainer.turns, trainer.batch, trainer.logged = turns, batch, {}
    trainer.add_callback(Told(trainer.logged))
    return trainer


if __name__ == "__main__":
    main(sys.argv[1])
