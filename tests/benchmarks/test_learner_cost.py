"""The learner's benchmark counts what an update needs, and its contestants take turns."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks import learner_gpu
from benchmarks.learner import FILE, OURS, PEERS, at_once, check_same, contest, table
from benchmarks.learner_ours import MAX_TOKENS, experiences, settings_of, with_logprobs
from benchmarks.learner_work import Work, ceiling_seconds, products, scoring_work, step_work
from benchmarks.learner_workload import (
    LOADS,
    LORA_RANK,
    TINY,
    Load,
    Order,
    Row,
    Size,
    draw,
    make_llama,
    size_of,
    tokens,
)
from learner.adapters import load_policy
from learner.micro_batch import MicroBatch
from learner.train_state import new_train_state
from learner.update import update

SIZE = Size(hidden=8, attention=16, narrow=4, middle=32, depth=2, vocabulary=50)


def test_the_last_block_goes_on_with_scored_tokens_and_the_first_has_no_input_to_change() -> None:
    found = [one for one, _ in products(SIZE, 10, 3)]

    assert [one.rows for one in found] == [10] * 10 + [3] * 5
    assert [one.to_input for one in found] == [False] * 3 + [True] * 12
    assert (found[3].into, found[3].out) == (16, 8)
    assert (found[-1].into, found[-1].out) == (8, 50)


def test_operations_are_two_per_weight_and_row() -> None:
    first, last, head = 8 * 16 + 2 * 8 * 4, 16 * 8 + 3 * 8 * 32, 8 * 50
    base = 2.0 * (10 * (first + last) + 10 * first + 3 * last + 3 * head)
    widths = (8 + 16) + 2 * (8 + 4), (16 + 8) + 3 * (8 + 32)
    adapters = 2.0 * LORA_RANK * (10 * sum(widths) + 10 * widths[0] + 3 * widths[1])

    step = step_work(SIZE, 10, 3)

    assert scoring_work(SIZE, 10, 3) == Work(base, 0.0)
    assert step.forward == base + adapters
    assert step.backward == base - 2.0 * 10 * first + 2.0 * adapters


def test_the_ceiling_is_the_faster_way_in_each_direction() -> None:
    measured = {"forward": {"mm": 2.0, "onednn": 4.0}, "backward": {"mm": 5.0, "onednn": 1.0}}

    assert ceiling_seconds(Work(8.0, 10.0), measured) == 8.0 / 4.0 + 10.0 / 5.0
    assert ceiling_seconds(Work(8.0, 10.0), measured, "mm") == 8.0 / 2.0 + 10.0 / 5.0


def test_a_batch_is_drawn_within_its_bounds_and_counts_its_padding() -> None:
    batch = draw(Load(5, (2, 4), (1, 3)), 100, 7)

    assert batch == draw(Load(5, (2, 4), (1, 3)), 100, 7)
    everything, scored, padded = tokens(batch)
    assert scored == sum(len(row.response) for row in batch)
    assert everything <= padded <= 5 * (4 + 3)


def test_the_peer_has_as_many_answers_in_a_pass_as_ours_and_none_is_left_over() -> None:
    rows = [Row([1] * 60, [1] * 40, [], 1.0)] * 64
    assert at_once(rows, 1024) == 8
    assert at_once(rows[:3], 1024) == 3
    assert at_once([Row([1] * 200, [1] * 64, [], 1.0)] * 8, 1024) == 4
    assert at_once(rows, 1) == 1


@pytest.mark.parametrize("kind", ["step", "whole"])
def test_a_round_without_the_peer_says_what_an_update_took(kind: str, tmp_path: Path) -> None:
    model, path = make_llama(tmp_path / "tiny", TINY), tmp_path / "batch.json"
    drawn = draw(Load(4, (6, 12), (3, 6)), size_of(model).vocabulary, 1)
    path.write_bytes(msgspec.json.encode(with_logprobs(drawn, model, 1)))

    found = contest(model, path, kind, "float32", Namespace(seed=1, peers=None, rounds=1))

    taken = found["contestants"]["Headrace"]
    assert len(taken) == 2
    assert all(one["cpu_seconds"] > 0.0 < one["grad_norm"] for one in taken)
    assert taken[1]["peak_mb"] > taken[1]["libraries_mb"] > 0.0
    row = table({"updates": [{"model": "tiny", "kind": kind, "dtype": "float32", **found}]})
    assert row.splitlines()[2].startswith(f"| tiny, {kind}, float32 | Headrace | ")


def test_the_first_update_is_the_same_for_all_in_float32() -> None:
    kept = msgspec.json.decode(FILE.read_bytes())["updates"]
    for one in (one for one in kept if one["dtype"] == "float32"):
        assert len(one["contestants"]) == 3
        check_same(one["contestants"])

    taken = kept[0]["contestants"]
    taken[PEERS[0].name][0]["grad_norm"] *= 1.02
    with pytest.raises(RuntimeError, match="the first grad_norm is"):
        check_same(taken)


def test_updates_stay_the_peers_as_long_as_the_baseline_learns_nothing(tmp_path: Path) -> None:
    """The peer is given advantages; here they change as the baseline learns the rewards."""
    torch.set_num_threads(1)
    model = make_llama(tmp_path / "tiny", TINY)
    order = Order(model=str(model), batch="", dtype="float32", kind="whole", seed=0)
    rows = with_logprobs(draw(LOADS["tiny"], size_of(model).vocabulary, 0), model, 0)
    settings = settings_of(order)
    state = new_train_state(load_policy(settings), settings.learner)
    state.value_optimizer.param_groups[0]["lr"] = 0.0

    found = []
    for _ in range(2):
        batch = MicroBatch(fresh=experiences(rows))
        stats = update(state, batch, settings.learner, MAX_TOKENS).stats
        found.append(stats.policy_loss + settings.learner.kl_weight * stats.kl)

    kept = msgspec.json.decode(FILE.read_bytes())["updates"]
    whole = next(
        one["contestants"]
        for one in kept
        if (one["model"], one["kind"], one["dtype"]) == ("tiny", "whole", "float32")
    )
    theirs, ours = ([one["loss"] for one in whole[name][:2]] for name in (PEERS[0].name, OURS.name))
    assert found == pytest.approx(theirs, rel=1e-3)
    assert ours[1] != pytest.approx(theirs[1], rel=0.1)


def test_an_update_is_what_the_order_says() -> None:
    given = {"epochs": 3, "kl_weight": 0.5, "length_scale": 5, "learning_rate": 0.25}
    order = Order(model="m", batch="", dtype="float32", kind="whole", **given)  # type: ignore[arg-type] # one type for all in a dict
    told = settings_of(order).learner

    assert (told.inner_epochs, told.kl_weight) == (3, 0.5)
    assert (told.length_scale, told.learning_rate) == (5.0, 0.25)


@pytest.mark.parametrize("text", ["16", "16x", "x16", "axb", "0x16", "4x1", "1x2x3"])
def test_a_batch_that_says_nothing_is_refused_at_the_start(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["learner_gpu", "--batches", "2x64", text])
    with pytest.raises(SystemExit) as ended:
        learner_gpu.main()
    assert ended.value.code == 2
    assert f"{text!r} is not NxM" in capsys.readouterr().err
