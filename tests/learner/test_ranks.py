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
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from contracts.codec import to_json
from contracts.events import Sample
from contracts.settings import Constraint, Policy, Practice, Settings
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.experience import BASELINE, Experience, experience_of
from learner.ledger import WITHDRAWN
from learner.policy import Policy as Model
from learner.progress import Beside, Progress, advance
from learner.ranks import ALONE, Order, Ranks, RanksError
from learner.train_state import new_train_state
from tests.learner import crew
from tests.learner.families import make_family
from tests.until import until

ROOT = Path(__file__).parents[2]
SECONDS = 300.0
MakeSample = Callable[..., Sample]
KINDS = ("used", "revised", "replayed", "imputed", "priced", "practised")


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
def on_family(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Settings:
    """A tiny model of a family, passes so short that there are many, a price and practice."""
    directory = make_family(getattr(request, "param", "llama"), tmp_path / "base")
    lines = [
        to_json({"messages": [{"role": "user", "content": text}], "expect": {"excludes": ["w7"]}})
        for text in ("w1 w2", "w3")
    ]
    path = tmp_path / "practice.jsonl"
    path.write_bytes(b"\n".join(lines))
    learner = replace(
        settings.learner,
        bucket_tokens=24,
        constraint=Constraint(multiplier=0.5),
        practice=Practice(prompts=str(path), prompts_per_batch=2, answers=6, max_tokens=12),
    )
    return replace(settings, policy=Policy(model=str(directory)), learner=learner)


def _batches(settings: Settings, make_sample: MakeSample) -> list[crew.Batch]:
    """Two batches as the policy's base would have logged them: rated and corrected answers, silent
    ones with an imputed reward or a price, and in the second a reward revised and one withdrawn."""
    policy = load_policy(settings)
    first = [_logged(policy, make_sample, number) for number in range(8)]
    quiet = [_logged(policy, make_sample, number, censored=True) for number in range(20, 24)]
    broken = [replace(one, violation=True, imputed=BASELINE) for one in quiet[:2]]
    guessed = [replace(one, reward=0.5, imputed="model") for one in quiet[2:]]
    revised = replace(first[1], sample_id="revised", offset=8, reward=-first[1].reward)
    back = replace(first[2], sample_id="back", offset=9, reward=0.0)
    second = [revised, *(_logged(policy, make_sample, number) for number in range(10, 17))]
    return [
        crew.Batch(first, Beside(silent=[broken[0], guessed[0]])),
        crew.Batch(second, Beside(superseded=[(back, WITHDRAWN)], silent=[broken[1], guessed[1]])),
    ]


def _logged(policy: Model, make_sample: MakeSample, number: int, **changes: object) -> Experience:
    """An answer with the log-probabilities that the policy gives it, some corrected."""
    wanted = (30, 31, 3) if number % 3 == 0 and not changes else ()
    one = experience_of(make_sample(number), offset=number, correction_ids=wanted)
    [row] = policy.logprobs([TokenSequence(one.prompt_ids, one.token_ids)], 64)
    return replace(one, logprobs=tuple(row), **changes)


def _largest(found: dict[str, Any], wanted: dict[str, Any], group: str) -> float:
    """The largest difference within a group, as a share of the largest value."""
    names = [name for name in wanted if name.startswith(f"{group}/")]
    assert names
    largest = max(float(wanted[name].abs().max()) for name in names)
    return max(float((found[name] - wanted[name]).abs().max()) for name in names) / largest


@pytest.mark.parametrize(
    ("processes", "shard", "on_family"),
    [
        pytest.param(2, False, "gemma2", id="2"),
        pytest.param(3, False, "olmo2", id="3"),
        pytest.param(2, True, "llama", id="2-sharded"),
    ],
    indirect=["on_family"],
)
def test_several_processes_make_the_update_of_one(
    processes: int, shard: bool, on_family: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    batches = _batches(on_family, make_sample)
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    shared = replace(on_family, learner=replace(on_family.learner, shard_base=shard))
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
    taught = [[one[kind] for kind in KINDS] for one in facts["figures"]]
    assert taught == [[8, 0, 0, 1, 1, 12], [7, 2, 2, 1, 1, 12]]
    assert all(one["corrections"] for one in facts["figures"])
    assert any(one["practice_loss"] for one in facts["figures"])  # else all groups were of one mind
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


def test_processes_that_compute_with_other_settings_or_another_base_stop_before_they_learn(
    on_family: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    """Their sums of gradients would be equal, and so would their weights."""
    larger = make_family("llama", tmp_path / "larger", hidden_size=64)
    learner = replace(on_family.learner, kl_weight=0.5)
    other = replace(on_family, learner=learner, policy=Policy(model=str(larger)))
    settings, others = (msgspec.to_builtins(one, enc_hook=str) for one in (on_family, other))
    order = crew.Order(settings, _batches(on_family, make_sample)[:1], str(tmp_path), others)

    status, said = torchrun(2, order, tmp_path)

    assert status != 0
    assert "process 1 of 2 of the learner would compute with other than process 0" in said
    assert "learner.kl_weight: 0.01, there 0.5; policy.model: sha256:" in said
    assert not (tmp_path / "found.json").exists()


class InTurn(Ranks):
    """Processes whose words were taken down one after another, instead of at once."""

    def __init__(self, said: list[Any]) -> None:
        super().__init__(0, 2)
        self.said = said

    def _of_all(self, mine: Any) -> list[Any]:
        self.said.append(mine)
        return list(self.said)


def test_all_that_an_update_steps_is_compared_and_not_the_adapters_alone(
    settings: Settings, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Ranks, "check_equal", lambda _self, *given: compared.append(given))
    train = new_train_state(load_policy(settings), settings.learner)
    fresh = [experience_of(make_sample(number), offset=number) for number in range(8)]
    advance(train, Progress(policy="assistant", base=train.policy.base), fresh, settings)
    monkeypatch.undo()

    [(weights, spread, multiplier, anchor)] = compared
    assert (spread, multiplier, anchor) == (train.spread, train.multiplier, "base")
    name = "value/outer.weight"
    further = {**weights, name: torch.nextafter(weights[name], torch.tensor(9.0))}
    ranks = InTurn([])
    with ranks.inside():
        for _ in range(2):
            ranks.check_equal(weights, spread, multiplier, anchor)
        for other in ((further, spread, multiplier), (weights, spread, multiplier + 1e-9)):
            with pytest.raises(RanksError, match="have come to different weights"):
                ranks.check_equal(*other, anchor)
            ranks.said.pop()


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
