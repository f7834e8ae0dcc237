"""How soon does what users say reach them, and what is being sooner worth?

``python -m benchmarks.freshness`` runs both parts, writes ``freshness.json`` to
``benchmarks/results`` and prints the tables; ``--table`` prints the last result again.

*Stack*: ``headrace demo`` with broker, engine, gate and canary, once per publication interval. The
figure is the time from a feedback event to the first answer by weights trained on it, canary
answers included (`console.report.freshness`). A rating closes its decision's window; where
none comes, all signals are waited for as long as the window is.

*Drift*: what is right changes while users ask, as in Monolith (arXiv 2209.07663, table 2: the
oftener the served weights are renewed, the better). A small policy between two answers to six
questions; now and then the other one becomes right. Users rate, one time in five by mistake, and
the learner learns every batch; the served version is renewed every so many batches. The learner
repeats nothing old, for it was about other tastes, and is held near the base, which says each
answer half the time: a policy that is sure never tries the other answer, and so never learns that
it has become right. No gate and no canary here: the learner alone, in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from tqdm import tqdm

from benchmarks.loop import RESULTS, commit, machine, run_demo
from benchmarks.plan_desk import BAD, GOOD, Desk, plan_settings
from learner.adapters import load_policy, save_adapter
from learner.progress import Progress, advance
from learner.train_state import new_train_state

PUBLISH_EVERY = (1, 2, 4, 8)
BATCH_SAMPLES = 32
SYNC_EVERY = (1, 2, 4, 8, 16, 32)
BATCHES, WARM_UP, CHANGES_EVERY, MISTAKES, USERS = 96, 16, 800, 0.2, 200
SEEDS = 5
DRIFTING = {"replay_share": 0.0, "kl_weight": 0.1, "learning_rate": 3e-3}


class StackRun(Struct, frozen=True, kw_only=True):
    """One demo: seconds from feedback to the first answer, and what was served.

    ``samples_served`` of the ``samples_learned`` were in weights that answered before the end; the
    others count as later than any, and a quantile among them is None.
    ``rate`` is in questions a second; a decision's signals are waited for ``window_seconds``, or
    until one of ``final_signals`` came.
    """

    publish_every: int
    rate: float
    window_seconds: float
    p50: float | None
    p95: float | None
    interactions: int
    failed_requests: int
    versions_served: int
    engine: str = ""
    final_signals: tuple[str, ...] = ()
    samples_learned: int | None = None
    samples_served: int | None = None


class DriftRun(Struct, frozen=True, kw_only=True):
    """One run of the drift: the share of right answers after the warm-up."""

    sync_every: int
    seed: int
    right: float


def stack_run(publish_every: int, options: argparse.Namespace) -> StackRun:
    """Run the demo with one publication interval."""
    window, rate = options.window, options.rate
    given = {
        "HEADRACE_LEARNER__PUBLISH_EVERY": str(publish_every),
        "HEADRACE_LEARNER__BATCH_SAMPLES": str(BATCH_SAMPLES),
        "HEADRACE_STREAMS__WINDOW_SECONDS": str(window),
        "HEADRACE_STREAMS__FINAL_SIGNALS": json.dumps(options.final_signals),
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        words = ["--interactions", str(options.interactions), "--rate", f"{rate:g}"]
        words += ["--held-out", "64", "--engine", options.engine]
        report = run_demo("desk", 0, words)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    fresh = report["freshness_seconds"]
    return StackRun(
        publish_every=publish_every,
        rate=rate,
        window_seconds=window,
        p50=fresh["p50"],
        p95=fresh["p95"],
        interactions=report["interactions"],
        failed_requests=report["failed_requests"],
        versions_served=report["versions_served"],
        engine=report["engine"].split()[0],
        final_signals=tuple(options.final_signals),
        samples_learned=fresh["count"],
        samples_served=fresh["finite"],
    )


class Tastes:
    """Which answer is right at a moment; it changes by chance, every `CHANGES_EVERY` on average."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"freshness/{seed}")
        self._right = GOOD

    def step(self) -> None:
        """Let one interaction's time pass."""
        if self.rng.random() < 1.0 / CHANGES_EVERY:
            self._right = BAD if self._right == GOOD else GOOD

    def is_right(self, answer: str) -> bool:
        """Return the truth about an answer now."""
        return self._right == answer


def drift_run(base: Path, sync_every: int, seed: int) -> DriftRun:
    """Ask, rate and learn while what is right changes."""
    with TemporaryDirectory() as directory:
        settings = plan_settings(base, Path(directory), seed)
        learner = replace(settings.learner, batch_samples=BATCH_SAMPLES, **DRIFTING)
        settings = replace(settings, learner=learner)
        desk, tastes = Desk(settings), Tastes(seed)
        train = new_train_state(load_policy(settings), settings.learner)
        progress = Progress(policy=settings.policy.name, base=train.policy.base)
        right: list[bool] = []
        for batch in range(BATCHES):
            users = [f"user-{tastes.rng.randrange(USERS)}" for _ in range(BATCH_SAMPLES)]
            fresh = []
            for one in desk.answer(users, batch * BATCH_SAMPLES):
                tastes.step()
                good = tastes.is_right(one.text)
                right.append(good)
                liked = good if tastes.rng.random() >= MISTAKES else not good
                fresh.append(replace(one.experience, reward=1.0 if liked else -1.0))
            progress = advance(train, progress, fresh, settings)
            if (batch + 1) % sync_every == 0:
                version = Path(directory) / f"version-{batch}"
                version.mkdir()
                save_adapter(train.policy, version)
                desk.serve(version.name, version, 0)
        return DriftRun(
            sync_every=sync_every, seed=seed, right=fmean(right[WARM_UP * BATCH_SAMPLES :])
        )


def stack_table(runs: Sequence[StackRun]) -> str:
    """Return the demo's runs as a Markdown table."""
    heading = (
        *("a release every", "window", "p50 s", "p95 s", "samples served, of learned"),
        *("versions served", "interactions", "failed"),
    )
    lines = [f"| {' | '.join(heading)} |", f"{'|---' * len(heading)}|"]
    for run in runs:
        ages = " | ".join("-" if age is None else f"{age:.0f}" for age in (run.p50, run.p95))
        lines.append(
            f"| {run.publish_every * BATCH_SAMPLES} samples | {_window(run)} | {ages} "
            f"| {_served(run)} | {run.versions_served} | {run.interactions} "
            f"| {run.failed_requests} |"
        )
    return "\n".join(lines)


def _window(run: StackRun) -> str:
    return " or ".join([f"{run.window_seconds:g} s", *(f"a {one}" for one in run.final_signals)])


def _served(run: StackRun) -> str:
    if run.samples_served is None:
        return "-"
    return f"{run.samples_served} of {run.samples_learned}"


def drift_table(runs: Sequence[DriftRun]) -> str:
    """Return the drift's means over seeds as a Markdown table."""
    lines = ["| served weights renewed every | right answers |", "|---|---|"]
    for every in SYNC_EVERY:
        shares = [run.right for run in runs if run.sync_every == every]
        if shares:
            lines.append(
                f"| {every * BATCH_SAMPLES} samples | {fmean(shares):.3f} "
                f"[{min(shares):.3f}, {max(shares):.3f}] |"
            )
    return "\n".join(lines)


def main() -> int:
    """Run what is asked for, write the JSON and print the tables; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.freshness", description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the last result again")
    parser.add_argument("--part", choices=("stack", "drift"), help="run this part alone")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--interactions", type=int, default=1_200)
    parser.add_argument("--rate", type=float, default=6.0, help="questions a second")
    parser.add_argument("--window", type=float, default=8.0, help="seconds; the demo has 12")
    parser.add_argument(
        "--final-signals",
        nargs="*",
        default=["rating"],
        metavar="KIND",
        help="feedback that closes a window at once (streams.final_signals); the demo has none",
    )
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    options = parser.parse_args()
    path = RESULTS / "freshness.json"
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    if not options.table:
        origin = {"machine": machine(), "commit": commit()}
        if options.part != "drift":
            runs = [stack_run(every, options) for every in PUBLISH_EVERY]
            kept = msgspec.to_builtins(runs)
            engines = sorted({run.engine for run in runs})
            found["stack"] = {**origin, "engine": ", ".join(engines), "runs": kept}
        if options.part != "stack":
            found["drift"] = {**origin, "runs": msgspec.to_builtins(_drift(options.seeds))}
        path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    if "stack" in found:
        print(stack_table(msgspec.convert(found["stack"]["runs"], list[StackRun])), "\n")
    if "drift" in found:
        print(drift_table(msgspec.convert(found["drift"]["runs"], list[DriftRun])))
    return 0


def _drift(seeds: int) -> list[DriftRun]:
    with TemporaryDirectory() as directory:
        base = Desk.make_base(Path(directory) / "base")
        todo = [(every, seed) for seed in range(seeds) for every in SYNC_EVERY]
        return [drift_run(base, *each) for each in tqdm(todo, desc="drift", unit="run")]


if __name__ == "__main__":
    sys.exit(main())
