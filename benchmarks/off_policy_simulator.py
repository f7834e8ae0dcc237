"""The simulator's part of `benchmarks.off_policy`: evidence on versions whose true value is known.

A small policy is made by warm start and answers the support desk's questions. What users who judge
got is the evaluation set; the learner trains on what the others got, and after every few batches
its evidence on the present weights is held against fresh answers of those weights to the same
questions of the same users. The reward is one thumb, up or down, drawn from the latent utility:
bounded and noisy like a rating, but given for every answer and at once, which is kinder than life.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from benchmarks.drawn_answers import draw
from contracts.events import BASE_VERSION, Sampling
from contracts.settings import Engine, Policy, Settings
from contracts.tool_calls import ToolCallScanner, answer_message
from guard.exchange import action_of
from learner.adapters import load_policy, save_adapter
from learner.evaluation import release_evidence
from learner.experience import Experience
from learner.progress import Progress, advance
from learner.train_state import TrainState, new_train_state
from learner.warm_start import Demonstration, Recipe, make_policy
from serving.generation import LocalModel
from simulator.desk import Desk
from simulator.population import Population
from simulator.product import Prompt

JUDGED, TRUTHS, VERSIONS, BATCHES, BATCH = 768, 4, 3, 3, 64
WARM_START_STEPS, MAX_TOKENS, SAMPLER_ROWS = 300, 24, 32
NOISE, THUMB_UP = 0.5, 0.25
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def simulate(seed: int) -> list[dict[str, Any]]:
    """Return, per version, the evidence's estimates and the truth about the version."""
    desk = Desk()
    with TemporaryDirectory() as directory:
        demonstrations = msgspec.convert(list(desk.demonstrations(seed)), list[Demonstration])
        base = make_policy(
            demonstrations,
            Path(directory) / "base",
            seed=seed,
            steps=WARM_START_STEPS,
            recipe=Recipe(threads=1),
            progress=False,
        )
        settings = Settings(
            state_dir=Path(directory),
            policy=Policy(model=str(base)),
            engine=Engine(max_model_len=256),
        )
        return _versions(desk, settings, seed)


def _versions(desk: Desk, settings: Settings, seed: int) -> list[dict[str, Any]]:
    model = LocalModel(settings.policy.model, settings.engine.max_model_len)
    train = new_train_state(load_policy(settings), settings.learner)
    questions = desk.live(seed)
    held = list(islice(questions, JUDGED))
    judges = answers_of(desk, model, BASE_VERSION, held, seed, "judge")
    progress = Progress(policy="desk", base=train.policy.base, evaluation=tuple(judges))
    name, found = BASE_VERSION, []
    for version in range(1, VERSIONS + 1):
        for batch in range(BATCHES):
            asked = list(islice(questions, BATCH))
            draw = 7919 * (version * BATCHES + batch) + seed
            fresh = answers_of(desk, model, name, asked, draw, "user")
            progress = advance(train, progress, fresh, settings)
        name = serve(model, train, settings.state_dir / f"version-{version}")
        before = time.process_time()
        evidence = release_evidence(train.policy, progress, settings)
        seconds = time.process_time() - before
        truth = [
            answer
            for repeat in range(TRUTHS)
            for answer in answers_of(desk, model, name, held, 104_729 * (repeat + 1), "judge")
        ]
        rewards = [answer.reward for answer in truth]
        found.append(
            {
                "seed": seed,
                "version": version,
                "true_reward": fmean(rewards),
                "true_reward_error": stdev(rewards) / len(rewards) ** 0.5,
                "true_cost": fmean(float(answer.violation) for answer in truth),
                "evidence_cpu_seconds": seconds,
                "evidence": msgspec.to_builtins(evidence),
            }
        )
    return found


def serve(model: LocalModel, train: TrainState, directory: Path) -> str:
    """Have the model serve the present weights, written to ``directory``; return their name."""
    directory.mkdir()
    save_adapter(train.policy, directory)
    model.load_adapter(directory.name, directory)
    return directory.name


def answers_of(
    desk: Desk, model: LocalModel, name: str, asked: Sequence[Prompt], seed: int, who: str
) -> list[Experience]:
    """Have a version answer questions and users react; the answers as the learner knows them.

    Who asks which question depends on ``who`` alone, chance of answers and thumbs on ``seed``.
    """
    asking, rng = random.Random(f"off-policy/{who}"), random.Random(f"off-policy/{seed}/{who}")
    users = Population(0)
    found = []
    chances = [
        Sampling(max_tokens=MAX_TOKENS, seed=seed * 100_003 + at) for at in range(len(asked))
    ]
    texts = [prompt.text for prompt in asked]
    drawn = draw(model, name, list(zip(texts, chances, strict=True)), SAMPLER_ROWS)
    for number, (prompt, answer) in enumerate(zip(asked, drawn, strict=True)):
        tools = [tool["function"]["name"] for tool in desk.tools]
        scanner = ToolCallScanner(tools, "benchmark")
        message = answer_message([*scanner.feed(answer.text), *scanner.finish()])
        verdict = desk.judge(prompt, message)
        user = users.draw(asking)
        felt = verdict.utility + user.bias + rng.gauss(0.0, NOISE)
        found.append(
            Experience(
                sample_id=f"{who}-{seed}-{number}",
                decision_id=f"{who}-{seed}-{number}",
                offset=number,
                session_id=f"{who}-{number}",
                user_id=f"{who}-{user.user_id}",
                behaviour_sequence=0,
                prompt_ids=tuple(answer.prompt_ids),
                token_ids=tuple(answer.token_ids),
                logprobs=tuple(answer.logprobs),
                temperature=1.0,
                reward=1.0 if felt > THUMB_UP else -1.0,
                decided_at=NOW,
                feedback_time=NOW,
                action=action_of(message),
                violation=verdict.violation,
            )
        )
    return found


def table_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the Markdown table of the versions, a row per level of weights."""
    heads = (
        *("seed, version", "KL", "level", "ESS / n", "mean w", "true reward", "SNIPS", "DR"),
        *("bound V ≥", "true cost", "SNIPS cost ≤", "bound C ≤", "bounds hold"),
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        for level, found in row["evidence"]["levels"].items():
            lines.append(
                f"| {row['seed']}, {row['version']} | {row['evidence']['kl_to_parent']:.2f} "
                f"| {level} | {found['support']['effective_samples']:.0f} / "
                f"{found['support']['samples']} | {found['support']['mean_weight']:.2f} "
                f"| {row['true_reward']:+.3f} ± {row['true_reward_error']:.3f} "
                f"| {_shown(found['snips'])} | {_shown(found['doubly_robust'])} "
                f"| {found['value_lower_bound']:+.3f} | {row['true_cost']:.3f} "
                f"| {found['cost']['upper']:.3f} | {found['cost_upper_bound']:.3f} "
                f"| {'yes' if bounds_hold(row, found) else 'NO'} |"
            )
    return lines


def bounds_hold(row: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether the truth is above the bound on the value and below that on the cost."""
    value_holds = found["value_lower_bound"] <= row["true_reward"]
    return bool(value_holds and row["true_cost"] <= found["cost_upper_bound"])


def _shown(interval: dict[str, float]) -> str:
    return f"{interval['value']:+.3f} ± {interval['error']:.3f}"
