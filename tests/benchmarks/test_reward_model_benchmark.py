"""The benchmark of the reward model keeps conversations apart, and no text in its results."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from transformers import AutoTokenizer

from benchmarks.loop import RESULTS
from benchmarks.reward_model import RECIPE, measure, read_pairs, split, table
from contracts.errors import UnavailableError
from contracts.settings import load_settings
from learner.buckets import TokenSequence
from learner.reward_training import Pair

SMALL = msgspec.structs.replace(RECIPE, max_tokens=32, members=2, rank=2, batch=64)


@pytest.fixture(scope="module")
def data() -> Path:
    return load_settings(environment={}).data_dir


@pytest.fixture(scope="module")
def pairs(tiny_policy: Path, data: Path) -> list[Pair]:
    try:
        return read_pairs(data, AutoTokenizer.from_pretrained(tiny_policy))
    except UnavailableError as error:
        pytest.skip(str(error))


def test_no_conversation_is_in_two_slices_and_none_is_lost(pairs: list[Pair]) -> None:
    slices = split(pairs)
    parts = (slices.trained, slices.calibrated, slices.told)
    assert sum(map(len, parts)) == len(pairs) > 1600
    users = [{pair.user for pair in part} for part in parts]
    assert not users[0] & users[1]
    assert not users[0] & users[2]
    assert not users[1] & users[2]
    shares = [len(part) / len(pairs) for part in parts]
    assert shares == pytest.approx([0.5, 0.15, 0.35], abs=0.04)


def test_answers_differ_and_follow_the_same_prompt(pairs: list[Pair]) -> None:
    for pair in pairs:
        assert pair.chosen.prompt_ids == pair.rejected.prompt_ids != ()
        assert pair.chosen.response_ids[-1] == pair.rejected.response_ids[-1]  # the end


def _planted(count: int, flipped: int) -> list[Pair]:
    """Return pairs whose better answer ends with one token and the worse with another, of every
    ``flipped`` one the other way round."""
    rng, found = random.Random(0), []
    for number in range(count):
        prompt = tuple(rng.randrange(8, 200) for _ in range(8))
        good, bad = (
            TokenSequence(prompt, (*(rng.randrange(8, 200) for _ in range(4)), last))
            for last in ((20, 90), (90, 20))[number % flipped == 0]
        )
        found.append(Pair(f"{rng.getrandbits(64):016x}", good, bad))
    return found


def test_a_small_base_tells_what_it_was_taught_and_leaves_figures_alone(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = _planted(600, flipped=10)
    monkeypatch.setattr("benchmarks.reward_model.read_pairs", lambda data, tokenizer: pairs)

    result = json.loads(msgspec.json.encode(measure(str(tiny_policy), tmp_path, SMALL)))

    assert result["pairs"]["tested"] == len(split(pairs).told)
    assert result["tuned"]["accuracy"]["lower"] > 0.75
    assert result["shorter"]["value"] == 0.5
    assert all(isinstance(leaf, int | float) for leaf in _leaves(result["ensemble"]))
    assert [line[:3] for line in table(result).split("\n")].count("|--") == 2


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in _leaves(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return [value]


def test_the_results_kept_are_better_than_chance_and_than_the_shorter_answer() -> None:
    kept = json.loads((RESULTS / "reward_model.json").read_text())
    assert kept["tuned"]["accuracy"]["lower"] > 0.5
    assert kept["tuned"]["accuracy"]["value"] > kept["shorter"]["value"]
    assert kept["tuned"]["ece"] < 0.1
