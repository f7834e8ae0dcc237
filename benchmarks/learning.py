"""Does it really learn? Right answers to real questions against the number of live interactions.

``python -m benchmarks.learning --model DIR`` lets a policy of 135 million parameters answer the
questions of BANKING77 and CLINC150 for 10,000 interactions: the full loop, the loop without each of
its parts (for 3,584), a contextual bandit that gets the same kind of feedback, and the same policy
told as many right answers. Each run, one variant with one seed, is kept as soon as it ends in
``learning.json`` of ``benchmarks/results``, with a hash of its recipe, and is not made again; a row
of another recipe than the present one is marked, and to renew it its runs are taken out of that
file. ``--table`` prints what is there and draws it.

DIR is SmolLM2-135M-Instruct in safetensors; `learning_base` makes the policy of it.
The held-out questions are the same for every seed. The base's depth and the loop's recipe were
chosen by how many of them are answered right, on other seeds (decision 0450). No test file is read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from msgspec.structs import replace

from benchmarks.learning_questions import SETS, read_questions
from benchmarks.learning_recipes import BANDIT, NOISE, NOISY, SKYLINE, VARIANTS, recipe_of
from benchmarks.learning_report import TITLES, WHOLE, plot, table
from benchmarks.loop import RESULTS, commit, machine
from contracts.settings import load_settings

SEEDS, INTERACTIONS = 3, 10_000
WITHOUT_A_PART = 3_584
"""Interactions of the loop without one of its parts: past those after which it is compared."""

Cell = tuple[str, str, int]
"""A run: the set of questions, the variant, the seed."""


def run(cell: Cell, base: Path, data: Path, interactions: int | None, place: int) -> dict[str, Any]:
    """Return what one run came to, over the interactions of its kind where none are given."""
    import torch

    from benchmarks.learning_live import live
    from benchmarks.learning_peers import bandit, skyline
    from learner.publish import code_version

    torch.set_num_threads(1)
    name, variant, seed = cell
    questions = read_questions(name, data)
    if variant.endswith(NOISY):
        questions.habits = replace(questions.habits, noise=NOISE)
    whole = variant in WHOLE or variant.startswith(BANDIT)
    interactions = interactions or (INTERACTIONS if whole else WITHOUT_A_PART)
    given: dict[str, Any] = {"seed": seed, "interactions": interactions, "place": place}
    origin = {"set": name, "variant": variant, "seed": seed}
    origin |= {"commit": commit(), "recipe": recipe_of(variant), "learner": code_version()}
    began = time.process_time()
    with TemporaryDirectory() as directory:
        if variant.startswith(BANDIT):
            found = bandit(questions, **given)
        elif variant == SKYLINE:
            found = skyline(questions, base, Path(directory), **given)
        else:
            way = next(one for one in VARIANTS if one.name == variant)
            found = live(questions, base, way, Path(directory), **given)
    seconds = time.process_time() - began
    return {**origin, "cpu_seconds": seconds, **found}


def cells_of(options: argparse.Namespace, found: dict[str, Any]) -> Iterator[Cell]:
    """Yield the runs that are asked for and not there yet; seed by seed, so that rows grow even."""
    there = {(row["set"], row["variant"], row["seed"]) for row in found.get("runs", [])}
    for seed in options.seeds:
        for name in options.sets:
            for variant in options.variants:
                if (name, variant, seed) not in there:
                    yield name, variant, seed


def measure(options: argparse.Namespace, path: Path) -> None:
    """Make the runs that are missing, and keep each as soon as it ends."""
    from benchmarks.learning_base import make_base

    settings = load_settings()
    data = options.data or settings.data_dir
    found = read(path)
    work = settings.state_dir / "learning"
    bases = {}
    for name in options.sets:
        questions = read_questions(name, data)
        bases[name] = make_base(str(options.model), questions, work / name)
        found.setdefault("monitor", {})[name] = questions.monitor_rates()
    found |= {"machine": machine(), "model": options.model.name}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        waiting: list[Future[dict[str, Any]]] = [
            pool.submit(run, cell, bases[cell[0]], data, options.interactions, at % options.jobs)
            for at, cell in enumerate(cells_of(options, found))
        ]
        for done in as_completed(waiting):
            if done.exception() is None:  # others go on, and are kept, when one fails
                found.setdefault("runs", []).append(done.result())
                write(found, path)
    for done in waiting:
        done.result()


def read(path: Path) -> dict[str, Any]:
    """Return the runs kept so far."""
    return dict(msgspec.json.decode(path.read_bytes())) if path.exists() else {}


def write(found: dict[str, Any], path: Path) -> None:
    """Keep the runs."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")


def main(given: Sequence[str] | None = None) -> int:
    """Make the runs that are missing, print the table and draw the plot; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--model", type=Path, metavar="DIR", help="SmolLM2-135M, safetensors")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of public data sets")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--variants", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument(
        "--interactions",
        type=int,
        help=f"default: {INTERACTIONS}, and {WITHOUT_A_PART} without one of the loop's parts",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "learning.json", metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print what is there only")
    options = parser.parse_args(given)
    if not options.table:
        if options.model is None:
            parser.error("--model DIR is needed: SmolLM2-135M-Instruct in safetensors")
        measure(options, options.out)
    found = read(options.out)
    if not found.get("runs"):
        parser.error(f"{options.out} has no runs to print; make some without --table")
    print(table(found))
    plot(found, options.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
