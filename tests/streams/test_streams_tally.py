"""Counts of users, sessions and versions: each decision once, however often it is read."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from contracts.clock import ManualClock
from streams import tally as tally_module
from streams.delivery import MAX_GIVEN_UP
from streams.recent import BUCKETS
from streams.session import RewardFigures
from streams.tally import Fact, Tally
from tests.streams.worker_in_memory import MemoryStore

START = ManualClock().now()


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
        "decided_at": START + timedelta(seconds=offset),
        "topic": "billing",
    }
    values["decided_at"] = fields.get("time", values["time"])
    said = RewardFigures(
        fields.pop("reward", None), fields.pop("re_asked", False), fields.pop("reports", 0)
    )
    values |= {"figures": said, "before": RewardFigures(fields.pop("before", None))}
    return Fact(**{**values, **fields})


def test_counts_add_up_and_means_are_means() -> None:
    memory = MemoryStore()
    tally = Tally(memory.latest)
    opened = [_fact(0), _fact(1, violation=True, action="search")]
    closed = [_fact(0, "closed", reward=1.0, reports=1), _fact(1, "closed", reward=0.5)]
    memory.write(tally.rows(opened + closed + [_fact(2, "closed", reward=None)]))
    user = memory.rows["user", "ann"].values
    assert (user["decisions"], user["violations"], user["rewards"]) == (2, 1, 2)
    assert (user["reward_mean"], user["reports"]) == (0.75, 1)
    session = memory.rows["session", "s"].values
    assert (session["turns"], session["last_action"], session["last_reward"]) == (2, "search", 0.5)


def test_facts_told_again_after_a_crash_count_once() -> None:
    memory = MemoryStore()
    facts = [_fact(number) for number in range(5)]
    memory.write(Tally(memory.latest).rows(facts[:3]))
    memory.write(Tally(memory.latest).rows(facts))
    assert memory.rows["user", "ann"].values["decisions"] == 5


def test_a_log_that_begins_anew_is_counted_on() -> None:
    memory = MemoryStore()
    memory.write(Tally(memory.latest).rows([_fact(number) for number in range(5)]))
    later = [_fact(number, time=START + timedelta(days=1, seconds=number)) for number in range(2)]
    memory.write(Tally(memory.latest).rows(later))
    assert memory.rows["user", "ann"].values["decisions"] == 7


def test_two_workers_count_one_user_over_their_partitions() -> None:
    memory = MemoryStore()
    one, two = Tally(memory.latest), Tally(memory.latest)
    for number in range(3):
        memory.write(one.rows([_fact(number)], shared=True))
        memory.write(two.rows([_fact(number, partition=1)], shared=True))
    assert memory.rows["user", "ann"].values["decisions"] == 6


WINDOW = 1200.0


def recent(memory: MemoryStore, view: str = "topic", key: str = "billing") -> dict[str, Any]:
    values = memory.rows[view, key].values
    return {name: value for name, value in values.items() if name.startswith("recent_")}


def _at(offset: int, minutes: float, stage: Any = "opened", **fields: Any) -> Fact:
    decided = START + timedelta(minutes=minutes)
    return _fact(offset, stage, decided_at=decided, time=decided, **fields)


def test_rates_are_over_the_decisions_of_the_window() -> None:
    memory = MemoryStore()
    facts = [
        _at(0, 0, violation=True, tokens=100, seconds=9.0),
        _at(1, 30, escalated=True, tokens=10, seconds=1.0),
        _at(2, 31, violation=True, tokens=20, seconds=2.0),
        _at(1, 30, "closed", reward=0.5, re_asked=True),
        _at(2, 31, "closed", reward=None),
    ]
    memory.write(Tally(memory.latest, WINDOW).rows(facts))
    for view, key in (("topic", "billing"), ("user", "ann"), ("session", "s")):
        assert recent(memory, view, key) == {
            "recent_decisions": 2,
            "recent_reward_mean": 0.5,
            "recent_violation_rate": 0.5,
            "recent_escalation_rate": 0.5,
            "recent_re_ask_rate": 0.5,
            "recent_tokens_mean": 15.0,
            "recent_seconds_mean": 1.5,
        }


def test_a_window_holds_the_same_whatever_the_order_and_however_often_it_is_told() -> None:
    rng = random.Random(7)
    facts = [_at(n, rng.uniform(0, 60), violation=rng.random() < 0.3) for n in range(60)]
    wanted = MemoryStore()
    wanted.write(Tally(wanted.latest, WINDOW).rows(facts))
    newest = max(fact.decided_at for fact in facts).timestamp() * BUCKETS // WINDOW
    kept = [
        fact for fact in facts if fact.decided_at.timestamp() * BUCKETS // WINDOW > newest - BUCKETS
    ]
    assert recent(wanted)["recent_decisions"] == len(kept)
    rate = sum(fact.violation for fact in kept) / len(kept)
    assert recent(wanted)["recent_violation_rate"] == rate
    for _ in range(5):
        memory = MemoryStore()
        for start in range(0, 60, 10):
            batch = facts[start : start + 10]
            memory.write(Tally(memory.latest, WINDOW).rows(batch))
            memory.write(Tally(memory.latest, WINDOW).rows(rng.sample(batch, len(batch))))
        assert recent(memory) == recent(wanted)


def test_a_revised_reward_takes_the_place_of_the_one_before_and_counts_once() -> None:
    memory = MemoryStore()
    revised = _at(0, 1, "revised", reward=-1.0, before=0.5, re_asked=True, reports=1)
    other = _at(1, 1, "revised", reward=None, before=1.0)
    tally = Tally(memory.latest, WINDOW)
    memory.write(tally.rows([_at(0, 1), _at(1, 1)]))
    closed = [_at(0, 1, "closed", reward=0.5), _at(1, 1, "closed", reward=1.0)]
    memory.write(tally.rows(closed))
    for _ in range(2):
        memory.write(Tally(memory.latest, WINDOW).rows([revised, other]))
        user = memory.rows["user", "ann"].values
        assert (user["decisions"], user["rewards"], user["reward_mean"]) == (2, 1, -1.0)
        assert user["reports"] == 1
        assert recent(memory)["recent_reward_mean"] == -1.0
        assert recent(memory)["recent_re_ask_rate"] == 0.5


def test_what_was_counted_and_is_told_otherwise_after_a_death_is_counted_as_told_last() -> None:
    memory = MemoryStore()
    told = [_fact(0), _fact(0, "closed", reward=1.0)]
    memory.write(Tally(memory.latest).rows(told))
    again = [_fact(0), _fact(0, "closed", reward=None), _fact(0, "revised", reward=0.25)]
    memory.write(Tally(memory.latest).rows(again))
    user = memory.rows["user", "ann"].values
    assert (user["decisions"], user["rewards"], user["reward_mean"]) == (1, 1, 0.25)


def test_a_decision_told_again_with_newer_feedback_is_counted_once() -> None:
    memory = MemoryStore()
    told = [_fact(0), _fact(0, "closed", reward=1.0)]
    memory.write(Tally(memory.latest).rows(told))
    later = {"time": START + timedelta(seconds=60), "decided_at": START}
    memory.write(Tally(memory.latest).rows([_fact(0), _fact(0, "closed", reward=1.0, **later)]))
    user = memory.rows["user", "ann"].values
    assert (user["decisions"], user["rewards"], user["reward_mean"]) == (1, 1, 1.0)


def test_of_a_decision_that_closes_as_it_opens_one_row_remains() -> None:
    at = {"time": START}
    rows = Tally(MemoryStore().latest).rows([_fact(0, **at), _fact(0, "closed", reward=0.5, **at)])
    (values,) = (row.values for row in rows if row.view == "decision")
    assert values["reward"] == 0.5


def test_what_was_not_written_goes_out_with_what_follows() -> None:
    memory = MemoryStore()
    tally = Tally(memory.latest)
    tally.rows([_fact(0), _fact(1, user_id="bob", session_id="t")])
    again = {(row.view, row.key) for row in tally.rows([_fact(0)])}
    assert {("user", "ann"), ("user", "bob"), ("session", "t")} <= again
    memory.write(tally.rows([_fact(2, user_id="cleo")]))
    tally.written()
    found = {key: row.values for (view, key), row in memory.rows.items() if view == "user"}
    assert {name: values["decisions"] for name, values in found.items()} == {
        "ann": 1,
        "bob": 1,
        "cleo": 1,
    }
    assert {row.key for row in tally.rows([_fact(3)]) if row.view == "user"} == {"ann"}


def test_a_row_tells_of_the_decisions_of_its_write_alone() -> None:
    memory = MemoryStore()
    tally = Tally(memory.latest)
    for start in range(0, 300, 100):
        numbers = range(start, start + 100)
        facts = [_fact(n) for n in numbers] + [_fact(n, "closed", reward=1.0) for n in numbers]
        memory.write(tally.rows(facts))
        (counts,) = tally._cache["user", "ann"].counted.counts.values()
        assert counts.newest.keys() == {f"d{n}" for n in numbers}
        tally.written()
    # After a death all of that write may be told again, and otherwise.
    again = [_fact(n, "closed", reward=0.0) for n in numbers]
    memory.write(Tally(memory.latest).rows(again))
    user = memory.rows["user", "ann"].values
    assert (user["decisions"], user["rewards"]) == (300, 300)
    assert user["reward_mean"] == pytest.approx(2 / 3)


def test_the_index_of_a_session_is_written_after_all_that_follows_from_it() -> None:
    memory = MemoryStore()
    tally = Tally(memory.latest)
    told = [_fact(0, "closed", index="first"), _fact(1, "closed", session_id="t", index="first")]
    views = list(dict.fromkeys(row.view for row in tally.rows(told)))
    assert views[-1] == "session"
    assert set(views) == {"decision", "user", "policy_version", "topic", "session"}


def test_of_what_is_told_of_a_decision_at_once_and_of_one_time_the_last_is_written() -> None:
    told = [_fact(0), _fact(0, "closed", status="censored"), _fact(1)]
    rows = [row for row in Tally(MemoryStore().latest).rows(told) if row.view == "decision"]
    assert [(row.key, row.values.get("status")) for row in rows] == [
        ("d0", "censored"),
        ("d1", None),
    ]


def test_the_last_action_and_reward_are_those_of_the_last_decision_whatever_is_told_last() -> None:
    first = [_at(0, 0, action="answer"), _at(0, 0, "closed", reward=0.5)]
    rated = [_at(0, 0, "revised", reward=-1.0, before=0.5)]
    rated = [msgspec.structs.replace(fact, time=START + timedelta(hours=1)) for fact in rated]
    second = [_at(1, 5, action="search"), _at(1, 5, "closed", reward=1.0)]
    for told in (first + rated + second, first + second + rated):
        memory = MemoryStore()
        for fact in told:
            memory.write(Tally(memory.latest, WINDOW).rows([fact]))
        session = memory.rows["session", "s"].values
        assert (session["last_action"], session["last_reward"]) == ("search", 1.0)


def test_a_revision_that_a_broken_store_did_not_take_is_counted_once_whatever_follows() -> None:
    memory = MemoryStore()
    tally = Tally(memory.latest, WINDOW)
    told = [_at(0, 1), _at(0, 1, "closed", reward=1.0)]
    told.append(_at(0, 1, "revised", reward=-1.0, before=1.0))
    for number in range(1, (MAX_GIVEN_UP - len(told)) // 2 + 1):
        told += [_at(number, 1), _at(number, 1, "closed", reward=0.0)]
    for _ in range(2):  # told again after a write that failed
        rows = tally.rows(told)
    memory.write(rows)
    user = memory.rows["user", "ann"].values
    assert (user["decisions"], user["rewards"]) == (number + 1, number + 1)
    assert user["reward_mean"] == pytest.approx(-1.0 / (number + 1))


def test_what_is_kept_for_a_store_that_stays_away_has_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tally_module, "MAX_NEWEST", 10)
    tally = Tally(MemoryStore().latest, WINDOW)
    for number in range(50):
        tally.rows([_at(number, 1), _at(number, 1, "closed", reward=0.0)])
    entity = tally._cache["user", "ann"]
    assert len(entity.told) == len(entity.counted.counts["0"].newest) == 10
