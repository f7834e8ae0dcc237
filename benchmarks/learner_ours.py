"""Our contestant in the learner's benchmark: ``python -m benchmarks.learner_ours ORDER``.

``whole`` is `learner.update.update` as the learner runs it: baseline, filters, the anchor and two
inner epochs. ``step`` is one descent on an objective whose advantages are given, without an anchor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch

from benchmarks.learner_ceiling import rates
from benchmarks.learner_turns import Turns
from benchmarks.learner_workload import Order, Row, size_of, tokens
from contracts import settings as s
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.experience import Experience
from learner.micro_batch import MicroBatch
from learner.objective import Objective, descend
from learner.scoring import Scored
from learner.train_state import TrainState, new_train_state
from learner.update import update

MAX_TOKENS = 1 << 17


def settings_of(order: Order) -> s.Settings:
    """Return the settings of an update like the peer's: one user each, nothing ever dropped."""
    whole = order.kind == "whole"
    return s.Settings(
        policy=s.Policy(model=order.model),
        engine=s.Engine(max_model_len=MAX_TOKENS, max_lora_rank=64),
        learner=s.Learner(
            device=order.device,
            base_dtype="bfloat16" if order.dtype == "bfloat16" else "float32",
            bucket_tokens=order.bucket_tokens,
            recompute=order.checkpointing,
            lora_rank=order.lora_rank,
            lora_alpha=2.0 * order.lora_rank,
            learning_rate=order.learning_rate,
            kl_weight=order.kl_weight if whole else 0.0,
            inner_epochs=order.epochs if whole else 1,
            length_scale=float(order.length_scale),
            replay_share=0.0,
            max_log_ratio=1e9,
            constraint=s.Constraint(mode="off"),
            seed=order.seed,
        ),
    )


def experiences(batch: list[Row]) -> tuple[Experience, ...]:
    """Return the batch as the learner has it, each answer of a user of its own."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return tuple(
        Experience(
            sample_id=f"s{place}",
            decision_id=f"d{place}",
            offset=place,
            session_id="",
            user_id=f"u{place}",
            behaviour_sequence=0,
            prompt_ids=tuple(row.prompt),
            token_ids=tuple(row.response),
            logprobs=tuple(row.logprobs),
            temperature=1.0,
            reward=row.reward,
            decided_at=moment,
            feedback_time=moment,
        )
        for place, row in enumerate(batch)
    )


def with_logprobs(batch: list[Row], model: Path, seed: int) -> list[Row]:
    """Return the batch as an engine would have logged it: the base's log-probabilities, noisy."""
    order = Order(model=str(model), batch="", dtype="float32", kind="step", seed=seed)
    policy = load_policy(settings_of(order))
    asked = [TokenSequence(tuple(row.prompt), tuple(row.response)) for row in batch]
    noise = torch.Generator().manual_seed(seed)
    found = policy.logprobs(asked, 1024, adapted=False)
    return [
        msgspec.structs.replace(
            row,
            logprobs=[
                x + 0.02 * n
                for x, n in zip(
                    values, torch.randn(len(values), generator=noise).tolist(), strict=True
                )
            ],
        )
        for row, values in zip(batch, found, strict=True)
    ]


def gpu_figures(device: str) -> Callable[[], dict[str, float]] | None:
    """Return what waits for a GPU and tells its highest memory since the last time, in MiB."""
    if device != "cuda":
        return None

    def figures() -> dict[str, float]:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / (1 << 20)
        torch.cuda.reset_peak_memory_stats()
        return {"gpu_mb": peak}

    return figures


def main(text: str) -> None:
    """Take turns until no more word comes."""
    torch.set_num_threads(1)
    order = msgspec.json.decode(text, type=Order)
    batch = msgspec.json.decode(Path(order.batch).read_bytes(), type=list[Row])
    turns = Turns(gpu_figures(order.device))
    if order.kind == "ceiling":
        dtype = torch.bfloat16 if order.dtype == "bfloat16" else torch.float32
        everything, scored, _ = tokens(batch)
        while turns.begin():
            turns.answer({"rates": rates(size_of(Path(order.model)), dtype, everything, scored)})
        return
    config = settings_of(order).learner
    state = new_train_state(load_policy(settings_of(order)), config)
    fresh = experiences(batch)
    while turns.begin():
        if order.kind == "whole":
            stats = update(state, MicroBatch(fresh=fresh), config, MAX_TOKENS).stats
            loss, norm = stats.policy_loss + config.kl_weight * stats.kl, stats.grad_norm
        else:
            loss, norm = _step(state, fresh, config)
        turns.end(loss=loss, grad_norm=norm)


def _step(
    state: TrainState, fresh: tuple[Experience, ...], config: s.Learner
) -> tuple[float, float]:
    scored = tuple(Scored(one, [], list(one.logprobs), torch.zeros(0)) for one in fresh)
    weights = torch.full((len(fresh),), 1.0 / len(fresh))
    advantages = torch.tensor([one.reward for one in fresh])
    stats = descend(state.policy, state.optimizer, Objective(scored, advantages, weights), config)
    return stats.policy_loss, stats.grad_norm


if __name__ == "__main__":
    main(sys.argv[1])
