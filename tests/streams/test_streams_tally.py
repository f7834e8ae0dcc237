"""Counts of users, sessions and versions: each decision once, however often it is read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from contracts.clock import ManualClock
from feature_store.views import FeatureRow, Value
from streams.tally import Fact, Tally

START = ManualClock().now()


class Memory:
    """An online store that holds the newest row per key."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], FeatureRow] = {}

    def latest(
        self, view: str, keys: Sequence[str]
    ) -> dict[str, tuple[dict[str, Value], datetime]]:
        found = {key: self.rows[view, key] for key in keys if (view, key) in self.rows}
        return {key: (dict(row.values), row.event_time) for key, row in found.items()}

    def write(self, rows: Sequence[FeatureRow]) -> None:
        self.rows |= {(row.view, row.key): row for row in rows}

    def __getitem__(self, place: tuple[str, str]) -> dict[str, Value]:
        return self.rows[place].values


def _fact(offset: int, stage: Any = "opened", **fields: Any) -> Fact:
    values = {
        "stage": stage,
        "partition": 0,
        "offset": offset,
        "decision_id": f"d{offset}",
        "user_id": "ann",
        "session_id": "s",
        "policy_version": "base",
        "action": "answer",
        "risk": 0.0,
        "violation": False,
        "time": START + timedelta(seconds=offset),
    }
    return Fact(**{**values, **fields})


def test_counts_add_up_and_means_are_means() -> None:
    memory = Memory()
    tally = Tally(memory.latest)
    opened = [_fact(0), _fact(1, violation=True, action="search")]
    closed = [_fact(0, "closed", reward=1.0, reports=1), _fact(1, "closed", reward=0.5)]
    memory.write(tally.rows(opened + closed + [_fact(2, "closed", reward=None)]))
    user = memory["user", "ann"]
    assert (user["decisions"], user["violations"], user["rewards"]) == (2, 1, 2)
    assert (user["reward_mean"], user["reports"]) == (0.75, 1)
    session = memory["session", "s"]
    assert (session["turns"], session["last_action"], session["last_reward"]) == (2, "search", 0.5)


def test_facts_told_again_after_a_crash_count_once() -> None:
    memory = Memory()
    facts = [_fact(number) for number in range(5)]
    memory.write(Tally(memory.latest).rows(facts[:3]))
    memory.write(Tally(memory.latest).rows(facts))
    assert memory["user", "ann"]["decisions"] == 5


def test_a_log_that_begins_anew_is_counted_on() -> None:
    memory = Memory()
    memory.write(Tally(memory.latest).rows([_fact(number) for number in range(5)]))
    later = [_fact(number, time=START + timedelta(days=1, seconds=number)) for number in range(2)]
    memory.write(Tally(memory.latest).rows(later))
    assert memory["user", "ann"]["decisions"] == 7


def test_two_workers_count_one_user_over_their_partitions() -> None:
    memory = Memory()
    one, two = Tally(memory.latest), Tally(memory.latest)
    for number in range(3):
        memory.write(one.rows([_fact(number)], shared=True))
        memory.write(two.rows([_fact(number, partition=1)], shared=True))
    assert memory["user", "ann"]["decisions"] == 6
