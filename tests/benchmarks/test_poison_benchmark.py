"""The crowd of the poison benchmark floods as it says, and a short run learns from it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from benchmarks.plan_desk import BAD, GOOD, Desk
from benchmarks.poison import ACCOUNTS, ACTIVITY, BURST, MISTAKES, Case, Crowd, run, table

TENTH = Case(share=0.1, user_window=1, seed=0)


def test_colluding_accounts_give_the_share_of_ratings_that_is_told() -> None:
    crowd = Crowd(TENTH)
    assert crowd.colluding == 40
    assert crowd.flood == pytest.approx(40 * ACTIVITY / (40 * ACTIVITY + ACCOUNTS - 40))

    asked = [crowd.asks() for _ in range(5_000)]

    flood = sum(account < crowd.colluding for account in asked) / len(asked)
    assert flood == pytest.approx(crowd.flood, abs=0.03)
    assert Crowd(replace(TENTH, share=0.0)).flood == 0.0


def test_who_asks_in_a_row_asks_as_often_on_the_whole() -> None:
    crowd = Crowd(replace(TENTH, burst=BURST))

    asked = [crowd.asks() for _ in range(200_000)]

    flood = sum(account < crowd.colluding for account in asked) / len(asked)
    assert flood == pytest.approx(crowd.flood, abs=0.03)
    turns = [len([*same]) for account, same in groupby(asked) if account < crowd.colluding]
    assert all(turn % BURST == 0 for turn in turns[:-1])


def test_who_colludes_praises_the_bad_answer_always_and_the_others_seldom() -> None:
    crowd = Crowd(TENTH)
    assert {(crowd.rates(0, GOOD), crowd.rates(0, BAD)) for _ in range(100)} == {(-1.0, 1.0)}

    praised = [crowd.rates(ACCOUNTS - 1, BAD) > 0.0 for _ in range(5_000)]

    assert sum(praised) / len(praised) == pytest.approx(MISTAKES, abs=0.03)


def test_a_short_run_learns_what_most_ratings_say_and_fills_a_row(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = Desk.make_base(tmp_path / "base")

    case = Case(share=0.2, user_window=1, seed=0)
    honest, flooded = run(base, replace(case, share=0.0), 8), run(base, case, 4)
    corrected = run(base, replace(case, correcting=True), 4)

    assert honest.before == flooded.before
    assert honest.learned > honest.lowest > honest.before > flooded.learned > corrected.learned
    assert (flooded.lowest, corrected.correcting) == (flooded.learned, True)
    assert [cell.passed + cell.held for cell in (honest, flooded)] == [2, 1]
    rows = table([corrected, honest, flooded]).splitlines()[2:]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| 0%", "0%", "the replay buffer"],
        ["| 20%", "83%", "the replay buffer"],
        ["| 20%, who also correct", "83%", "the replay buffer"],
    ]
