"""Does a reward model on a small base tell what people prefer, and does it know how sure it is?

``python -m benchmarks.reward_model --model DIR`` trains on the pairs of hh-rlhf (harmlessness, one
file of 1,700) with the learner's own code and writes ``reward_model.json`` to
``benchmarks/results``; ``--table`` prints what is there as Markdown. DIR is a chat model, such as
SmolLM2-135M-Instruct in safetensors.

A hash of the first question puts each pair into training (half), calibration (15 %) or test (35 %),
so that no conversation is in two of them. Nothing was tuned on the test pairs. The texts are
offensive: they are neither printed nor kept. For comparison: the heads alone on the frozen base,
each member alone, and the rule that the shorter answer is the better one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec.structs import replace

from benchmarks.loop import RESULTS, commit, machine
from contracts.errors import UnavailableError
from contracts.settings import load_settings
from learner.base_model import block_count
from learner.buckets import TokenSequence
from learner.calibration import Calibration, errors_on_pairs
from learner.raters import Floats, proportion, strangers
from learner.reward_card import RewardRecipe
from learner.reward_fitting import Fitted, Scores, Slices, calibration_of, fit, scores_of
from learner.reward_model import cut
from learner.reward_training import Pair
from learner.reward_version import new_trunk, shape

FILE = "hh-rlhf/harmless_train.jsonl.gz"
TRAINED, CALIBRATED = 50, 65
"""Hashes below these, of a hundred, are of training and of calibration."""

RECIPE = RewardRecipe(max_tokens=128, seconds=600.0)
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def read_pairs(data: Path, tokenizer: Any) -> list[Pair]:
    """Return the pairs whose answers differ in the last turn alone, as tokens of the chat template.

    The user of a pair is the hash of its first question. UnavailableError when the set is missing.
    """
    path = data / FILE
    if not path.is_file():
        raise UnavailableError(f"{path} is not there; get Anthropic's hh-rlhf and set data_dir")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found = []
    for row in rows:
        chosen, rejected = _turns(row["chosen"]), _turns(row["rejected"])
        if chosen[:-1] != rejected[:-1] or not chosen[:-1] or chosen[-1] == rejected[-1]:
            continue
        asked = tokenizer.apply_chat_template(
            chosen[:-1], tokenize=False, add_generation_prompt=True
        )
        prompt = tuple(tokenizer.encode(asked, add_special_tokens=False))
        answers = [_answer_ids(tokenizer, each[-1]["content"]) for each in (chosen, rejected)]
        user = blake2b(chosen[0]["content"].encode(), digest_size=8).hexdigest()
        found.append(Pair(user, *(TokenSequence(prompt, ids) for ids in answers)))
    return found


def split(pairs: list[Pair]) -> Slices:
    """Put each pair into a slice by the hash of its first question."""
    places = [int(pair.user, 16) % 100 for pair in pairs]
    parts: list[tuple[Pair, ...]] = [
        tuple(pair for pair, at in zip(pairs, places, strict=True) if low <= at < high)
        for low, high in ((0, TRAINED), (TRAINED, CALIBRATED), (CALIBRATED, 100))
    ]
    return Slices(*parts)


def measure(model: str, data: Path, recipe: RewardRecipe = RECIPE) -> dict[str, Any]:
    """Train, calibrate and test; return the figures."""
    torch.set_num_threads(recipe.threads)
    trunk = new_trunk(model, recipe)
    slices = split(read_pairs(data, trunk.tokenizer))
    tested = [pair for pair in slices.told if isinstance(pair, Pair)]
    began, began_wall = time.process_time(), time.monotonic()
    frozen = fit(trunk, slices, replace(recipe, epochs=0))
    probed = time.process_time()
    tuned = fit(trunk, slices, recipe)
    trained = time.process_time()
    scores = scores_of(trunk, tuned.heads, slices.told, recipe)
    calibrated = scores_of(trunk, tuned.heads, slices.calibrated, recipe)
    return {
        "model": Path(model).name,
        "base": trunk.base,
        "pairs": {"trained": len(slices.trained), "calibrated": len(slices.calibrated)}
        | {"tested": len(slices.told)},
        "recipe": msgspec.to_builtins(recipe),
        "blocks_adapted": shape(block_count(model), recipe),
        "steps": [tuned.steps, tuned.planned_steps],
        "tokens": _tokens(slices, recipe),
        "cut_answers": _cut_share(tested, recipe),
        "frozen": _figures(frozen),
        "tuned": _figures(tuned),
        "shorter": _shorter(tested),
        "ensemble": ensemble(scores, calibrated, tuned.calibration),
        "cpu_seconds": {"frozen": probed - began, "tuned": trained - probed},
        "wall_seconds": time.monotonic() - began_wall,
    }


def ensemble(scores: Scores, calibrated: Scores, calibration: Calibration) -> dict[str, Any]:
    """Return what the members add: against each alone, and whether their discord tells errors.

    Each alone has a calibration of its own, as it would have without the others.
    ``wrong_above`` is the chance that a wrong pair has more discord than a right one (the area
    under the ROC curve; 0.5 says nothing), and the same for a small difference of mean scores.
    """
    differences_nk = scores.pairs_2nk[0] - scores.pairs_2nk[1]
    mean_n = differences_nk.mean(axis=1)
    nothing, each = [0.0] * len(mean_n), strangers(len(mean_n))
    alone = [
        errors_on_pairs(calibration_of(only(calibrated, k)), differences_nk[:, k], each, nothing)
        for k in range(differences_nk.shape[1])
    ]
    discord_n = np.asarray(calibration.preference(differences_nk)).std(axis=1)
    calm_n = discord_n <= np.median(discord_n)
    right_n = (mean_n > 0.0).astype(float)
    return {
        "members": [one.accuracy.value for one in alone if one.accuracy],
        "member_brier": float(np.mean([one.brier for one in alone])),
        "together_brier": errors_on_pairs(calibration, mean_n, each, nothing).brier,
        "calm_half": proportion(right_n[calm_n], each.of(calm_n)),
        "discordant_half": proportion(right_n[~calm_n], each.of(~calm_n)),
        "wrong_above": {
            "discord": _area(discord_n, right_n == 0.0),
            "small_difference": _area(-np.abs(mean_n), right_n == 0.0),
        },
    }


def only(scores: Scores, member: int) -> Scores:
    """Return the scores of one member alone."""
    return replace(
        scores,
        rated_nk=scores.rated_nk[:, [member]],
        pairs_2nk=scores.pairs_2nk[:, :, [member]],
    )


def _area(values_n: Floats, wrong_n: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
    """Return the share of (wrong, right) couples in which the wrong one has the larger value."""
    above_wr = values_n[wrong_n][:, None] - values_n[~wrong_n][None, :]
    return float((above_wr > 0.0).mean() + 0.5 * (above_wr == 0.0).mean())


def _figures(fitted: Fitted) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(fitted.on_pairs)
    return {**found, "slope": fitted.calibration.slope}


def _shorter(pairs: list[Pair]) -> dict[str, Any]:
    """Return how often the shorter answer, in tokens, was the one wanted."""
    signs = [np.sign(len(p.rejected.response_ids) - len(p.chosen.response_ids)) for p in pairs]
    found = proportion((np.array(signs) + 1.0) / 2.0, strangers(len(pairs)))
    return dict(msgspec.to_builtins(found))


def _tokens(slices: Slices, recipe: RewardRecipe) -> int:
    pairs = [*slices.trained, *slices.calibrated, *slices.told]
    answers = [a for p in pairs if isinstance(p, Pair) for a in (p.chosen, p.rejected)]
    return sum(len(cut(answer, recipe.max_tokens)) for answer in answers)


def _cut_share(pairs: list[Pair], recipe: RewardRecipe) -> float:
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    shortened = [len(cut(a, recipe.max_tokens).response_ids) < len(a.response_ids) for a in answers]
    return sum(shortened) / len(shortened)


def _turns(text: str) -> list[dict[str, str]]:
    parts = _TURN.split(text)[1:]
    return [
        {"role": _ROLES[role], "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _answer_ids(tokenizer: Any, content: str) -> tuple[int, ...]:
    ids = tokenizer.encode(content, add_special_tokens=False)
    return (*ids, tokenizer.eos_token_id)


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| what | right of test pairs | 95 % | ECE | before calibration | Brier | before |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in (("frozen", "heads on the frozen base"), ("tuned", "with LoRA")):
        one = result[name]
        right = one["accuracy"]
        lines.append(
            f"| {title} | {right['value']:.3f} of {right['count']} "
            f"| {right['lower']:.3f} to {right['upper']:.3f} | {one['ece']:.3f} "
            f"| {one['raw_ece']:.3f} | {one['brier']:.3f} | {one['raw_brier']:.3f} |"
        )
    votes = result["ensemble"]
    members, mean = votes["members"], sum(votes["members"]) / len(votes["members"])
    alone = f"{min(members):.3f} to {max(members):.3f}, mean {mean:.3f}"
    lines.append(f"| one member alone | {alone} | | | | {votes['member_brier']:.3f} | |")
    for title, one in (
        ("half with less discord", votes["calm_half"]),
        ("half with more discord", votes["discordant_half"]),
        ("the shorter answer", result["shorter"]),
    ):
        bounds = f"{one['lower']:.3f} to {one['upper']:.3f}"
        lines.append(f"| {title} | {one['value']:.3f} of {one['count']} | {bounds} | | | | |")
    lines += ["", "| what tells wrong pairs from right ones | area under the curve |", "|---|---|"]
    for name, title in (
        ("discord", "discord of the members"),
        ("small_difference", "a small difference of their mean scores"),
    ):
        lines.append(f"| {title} | {votes['wrong_above'][name]:.3f} |")
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark, keep the figures and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_model", description=__doc__)
    parser.add_argument("--model", help="a chat model in Hugging Face format", metavar="DIR")
    parser.add_argument("--data", type=Path, help="folder of public data sets", metavar="DIR")
    parser.add_argument("--table", action="store_true", help="print the table only")
    options = parser.parse_args()
    path = RESULTS / "reward_model.json"
    if not options.table:
        if not options.model:
            parser.error("--model DIR is needed: SmolLM2-135M-Instruct in safetensors, say")
        origin = {"machine": machine(), "commit": commit()}
        result = {**origin, **measure(options.model, options.data or load_settings().data_dir)}
        path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print(table(msgspec.json.decode(path.read_bytes())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
