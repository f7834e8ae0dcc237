"""What each way of learning makes of one stream of answers, in the simulator, where truth is known.

``python -m benchmarks.losses`` trains a small policy on the support desk for 12 micro-batches of 64
answers, three of them between two versions, once per way and seed, and writes ``losses.json`` to
``benchmarks/results``; ``--table`` prints what is there as Markdown. What is reported is the gain
of the last version over the base, in thumbs of fresh answers to 300 questions that are never asked
live. A reward is one thumb per answer, at once and never missing: kinder than life.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace
from tqdm import tqdm

from benchmarks.loop import RESULTS, commit, machine
from benchmarks.off_policy_simulator import WARM_START_STEPS, answers_of, serve
from contracts.codec import to_json
from contracts.events import BASE_VERSION
from contracts.settings import Engine, Learner, Policy, Settings
from learner.adapters import load_policy
from learner.assistant_turn import correction_ids
from learner.experience import Experience
from learner.losses import LOSSES, Bounds, LossValue, Terms, ppo
from learner.practice import read_practice
from learner.progress import Progress, advance
from learner.train_state import TrainState, new_train_state
from learner.warm_start import Demonstration, Recipe, make_policy
from serving.generation import LocalModel
from simulator.desk import Desk
from simulator.product import Prompt

VERSIONS, BATCHES, BATCH = 4, 3, 64
HELD, REPEATS, EXERCISES = 300, 2, 200
CORRECTED = 0.3
"""Share of the answers with a thumb down that a person corrects."""


class Way(Struct, frozen=True, kw_only=True):
    """Settings of the learner, and what reaches it: log-probabilities, corrections, exercises."""

    name: str
    learner: dict[str, Any] = {}
    logged: bool = True
    encouraged_alone: bool = False
    corrected: bool = False
    practised: bool = False


WAYS = (
    *(
        Way(name=name, learner={"loss": name})
        for name in ("ppo", "topr", "cispo", "awr", "kto", "likelihood")
    ),
    Way(name="ppo, nothing logged", logged=False),
    Way(name="the same, encouraged answers alone", logged=False, encouraged_alone=True),
    Way(name="ppo, corrections imitated", corrected=True, learner={"preference_weight": 0.0}),
    Way(name="ppo, corrections preferred", corrected=True, learner={"correction_weight": 0.0}),
    Way(name="ppo, corrections both", corrected=True),
    Way(name="ppo, practice", practised=True),
)


def compare(seed: int) -> list[dict[str, Any]]:
    """Return what each way makes of the desk's users of one seed."""
    torch.set_num_threads(1)
    desk = Desk()
    held = desk.held_out(seed, HELD)
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
        start = _thumbs(desk, LocalModel(str(base), 256), BASE_VERSION, held)
        return [
            {"seed": seed, **_learned(desk, settings, way, held, seed, start)}
            for way in tqdm(WAYS, desc=f"seed {seed}")
        ]


def _learned(
    desk: Desk,
    settings: Settings,
    way: Way,
    held: Sequence[Prompt],
    seed: int,
    start: Sequence[float],
) -> dict[str, Any]:
    with TemporaryDirectory() as directory:
        given = dict(way.learner)
        if way.practised:
            given["practice"] = {"prompts": _exercises(desk, Path(directory), seed)}
        mine = replace(settings, state_dir=Path(directory), learner=msgspec.convert(given, Learner))
        train = new_train_state(load_policy(mine), mine.learner)
        train.practice = read_practice(mine, train.policy.tokenizer)
        model = LocalModel(mine.policy.model, mine.engine.max_model_len)
        with _only_encouraged(way.encouraged_alone):
            name, seconds = _train(desk, model, train, mine, way, seed)
        gains = [b - a for a, b in zip(start, _thumbs(desk, model, name, held), strict=True)]
    return {
        "way": way.name,
        "gain": fmean(gains),
        "gain_error": stdev(gains) / len(gains) ** 0.5,
        "cpu_seconds_a_batch": seconds,
    }


def _train(
    desk: Desk, model: LocalModel, train: TrainState, settings: Settings, way: Way, seed: int
) -> tuple[str, float]:
    """Learn version by version from what the one before answered.

    Return the last one's name, and the CPU seconds of learning per micro-batch.
    """
    questions, name, seconds = desk.live(seed), BASE_VERSION, 0.0
    progress = Progress(policy="desk", base=train.policy.base)
    for version in range(1, VERSIONS + 1):
        for batch in range(BATCHES):
            number = version * BATCHES + batch
            asked = list(islice(questions, BATCH))
            fresh = answers_of(desk, model, name, asked, 7919 * number + seed, "user")
            rng = random.Random(f"losses/{seed}/{number}")
            told = [_told(train, way, one, p, rng) for one, p in zip(fresh, asked, strict=True)]
            began = time.process_time()
            progress = advance(train, progress, told, settings)
            seconds += time.process_time() - began
        name = serve(model, train, settings.state_dir / f"version-{version}")
    return name, seconds / (VERSIONS * BATCHES)


def _told(
    train: TrainState, way: Way, answer: Experience, prompt: Prompt, rng: random.Random
) -> Experience:
    """Return an answer as the learner comes to know it this way."""
    if not way.logged:
        answer = replace(answer, logprobs=())
    if rng.random() < CORRECTED and way.corrected and answer.reward < 0:
        wanted = correction_ids(train.policy.tokenizer, prompt.right)
        answer = replace(answer, correction_ids=wanted)
    return answer


@contextmanager
def _only_encouraged(on: bool) -> Iterator[None]:
    """Learn unlogged answers by `ppo` at weight 1, the discouraged ones not at all."""

    def encouraged(terms: Terms, bounds: Bounds) -> LossValue:
        value = ppo(replace(terms, mu_bt=terms.prox_bt), bounds)
        return replace(value, loss_b=value.loss_b * (terms.advantage_b > 0))

    before = LOSSES["kto"]
    LOSSES["kto"] = encouraged if on else before
    try:
        yield
    finally:
        LOSSES["kto"] = before


def _exercises(desk: Desk, directory: Path, seed: int) -> str:
    """Write live questions with their right actions as exercises; return where."""
    lines = []
    for prompt in islice(desk.live(seed + 7_777), EXERCISES):
        calls = prompt.right.tool_calls
        lines.append(
            {
                "messages": [{"role": "user", "content": prompt.text}],
                "tools": desk.tools,
                "expect": {"actions": [calls[0].function.name if calls else "answer"]},
            }
        )
    path = directory / "practice.jsonl"
    path.write_bytes(b"".join(to_json(line) + b"\n" for line in lines))
    return str(path)


def _thumbs(desk: Desk, model: LocalModel, name: str, held: Sequence[Prompt]) -> list[float]:
    """Return the mean thumb of each question, over answers drawn with the same chance."""
    drawn = [
        answers_of(desk, model, name, held, 104_729 * (repeat + 1), "judge")
        for repeat in range(REPEATS)
    ]
    return [fmean(answer.reward for answer in row) for row in zip(*drawn, strict=True)]


def table(result: dict[str, Any]) -> str:
    """Return the Markdown table: a row per way, a column per seed and their mean."""
    seeds = sorted({row["seed"] for row in result["rows"]})
    lines = [
        f"| way | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | CPU s a batch |",
        "|---" * (len(seeds) + 3) + "|",
    ]
    for way in dict.fromkeys(row["way"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["way"] == way]
        cells = [f"{row['gain']:+.3f} ± {row['gain_error']:.3f}" for row in rows]
        seconds = fmean(row["cpu_seconds_a_batch"] for row in rows)
        mean = fmean(row["gain"] for row in rows)
        lines.append(f"| {way} | {' | '.join(cells)} | {mean:+.3f} | {seconds:.2f} |")
    return "\n".join(lines)


def main() -> int:
    """Run all ways, keep the figures and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print the table only")
    options = parser.parse_args()
    path = RESULTS / "losses.json"
    if not options.table:
        ran_on = commit()
        rows = [row for seed in range(options.seeds) for row in compare(seed)]
        result = {"machine": machine(), "commit": ran_on, "rows": rows}
        path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print(table(msgspec.json.decode(path.read_bytes())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
