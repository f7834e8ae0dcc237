"""Several processes of one learner come to what one comes to, and say so when they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file

from contracts.codec import to_json
from contracts.events import Sample
from contracts.settings import Policy, Settings
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.experience import Experience, experience_of
from learner.ranks import ALONE, Order, Ranks
from tests.learner import crew
from tests.learner.families import make_family
from tests.until import until

ROOT = Path(__file__).parents[2]
SECONDS = 300.0
MakeSample = Callable[..., Sample]


def torchrun(processes: int, order: crew.Order, folder: Path) -> tuple[int, str]:
    """Run the updates of an order in several processes; return status and output."""
    path = folder / "order.json"
    path.write_bytes(to_json(order))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "tests.learner.crew", str(path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout[-2000:] + done.stderr[-8000:]


@pytest.fixture
def on_family(settings: Settings, tmp_path: Path) -> Settings:
    """A tiny model of the Llama family, and passes so short that there are many."""
    directory = make_family("llama", tmp_path / "base")
    learner = msgspec.structs.replace(settings.learner, bucket_tokens=24)
    policy = Policy(model=str(directory))
    return msgspec.structs.replace(settings, policy=policy, learner=learner)


def _batches(settings: Settings, make_sample: MakeSample) -> list[list[Experience]]:
    """Two batches as the policy's base would have logged them, with corrections."""
    policy = load_policy(settings)
    found = []
    for first in (0, 8):
        batch = []
        for number in range(first, first + 8):
            wanted = (30, 31, 3) if number % 3 == 0 else ()
            one = experience_of(make_sample(number), offset=number, correction_ids=wanted)
            [row] = policy.logprobs([TokenSequence(one.prompt_ids, one.token_ids)], 64)
            batch.append(msgspec.structs.replace(one, logprobs=tuple(row)))
        found.append(batch)
    return found


def _largest(found: dict[str, Any], wanted: dict[str, Any], group: str) -> float:
    """The largest difference within a group, as a share of the largest value."""
    names = [name for name in wanted if name.startswith(f"{group}/")]
    assert names
    largest = max(float(wanted[name].abs().max()) for name in names)
    return max(float((found[name] - wanted[name]).abs().max()) for name in names) / largest


@pytest.mark.parametrize(
    ("processes", "shard"),
    [
        pytest.param(2, False, id="2"),
        pytest.param(3, False, id="3"),
        pytest.param(2, True, id="2-sharded"),
    ],
)
def test_several_processes_make_the_update_of_one(
    processes: int, shard: bool, on_family: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    batches = _batches(on_family, make_sample)
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    learner = msgspec.structs.replace(on_family.learner, shard_base=shard)
    shared = msgspec.structs.replace(on_family, learner=learner)
    order = crew.Order(msgspec.to_builtins(shared, enc_hook=str), batches, str(together))

    crew.run(on_family, batches, alone, ALONE)
    status, said = torchrun(processes, order, tmp_path)

    assert status == 0, said

    wanted, found = (load_file(one / "tensors.safetensors") for one in (alone, together))
    for number in range(len(batches)):
        apart = _largest(found, wanted, f"gradient/{number}")
        moved = _largest(found, wanted, f"weight/{number}")
        print(f"update {number}: gradient {apart:.1e}, weights {moved:.1e}")
        assert apart < 1e-5
        assert moved < 1e-5
    facts, told = (json.loads((one / "found.json").read_text()) for one in (alone, together))
    for name in ("scores", "branches"):
        for row, other in zip(facts[name], told[name], strict=True):
            assert other == pytest.approx(row, abs=1e-3)
    assert told["drawn"] == facts["drawn"]
    assert (facts["spread"], told["spread"] > 0) == (0, shard)
    for figures, others in zip(facts["figures"], told["figures"], strict=True):
        assert others.pop("dropped") == figures.pop("dropped")
        assert others == pytest.approx(figures, rel=1e-3, abs=1e-5)


def test_processes_that_come_to_different_weights_stop_and_say_so(
    on_family: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    settings = msgspec.to_builtins(on_family, enc_hook=str)
    batches = _batches(on_family, make_sample)[:1]

    status, said = torchrun(2, crew.Order(settings, batches, str(tmp_path), spoil=True), tmp_path)

    assert status != 0
    assert "the 2 processes of the learner have come to different weights" in said


def test_alone_there_is_nothing_to_share() -> None:
    assert ALONE.leads
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    assert ALONE.missing(3) == 0
    assert ALONE.total(1.5, 2.0) == (1.5, 2.0)
    assert ALONE.gathered({1: "a"}) == {1: "a"}


def test_shares_are_all_there_is_each_once_and_of_like_size() -> None:
    every = list(range(7))
    parts = []
    for rank in range(3):
        ranks = Ranks(rank, 3)
        with ranks.inside():
            part = ranks.share(every)
            assert len(part) + ranks.missing(len(every)) == 3
        parts += part
        assert ranks.share(every) == every  # outside of an order a process works alone

    assert sorted(parts) == every


def test_rank_0_says_that_it_is_there_whatever_it_does_alone_and_never_within_an_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[tuple[str, bool]] = []

    class Telling(Ranks):
        def _exchanged(self, order: Order | None) -> Order:
            assert order is not None
            said.append((order.name, self._inside))
            return order

    def more_than(before: int) -> Callable[[], bool]:
        return lambda: sum(name == "" for name, _ in said) > before

    monkeypatch.setattr("learner.ranks.SIGN_OF_LIFE", 0.001)
    ranks = Telling(0, 2)
    ranks.keep_alive()
    for before in range(20):
        until("a sign of life", more_than(before))
        with ranks.together(dict, "score"):
            said.append(("alone", False))
    ranks.stop()
    assert said[-1] == ("stop", False)
    assert not any(inside for _, inside in said)
    orders = [place for place, (name, _) in enumerate(said) if name == "score"]
    assert all(said[place + 1][0] == "alone" for place in orders)
    for thread in [one for one in threading.enumerate() if one.name == "sign of life"]:
        thread.join(10.0)
    assert said[-1] == ("stop", False)
