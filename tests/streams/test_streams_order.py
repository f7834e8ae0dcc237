"""Any order, duplication and delay of a history gives the same rewards as a join written apart.

The other join is SQL over the raw log (DuckDB): it knows nothing of windows, sessions in memory,
revisions or crashes, only the declared rules.
"""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.clock import ManualClock
from contracts.events import Decision, Feedback
from contracts.settings import RewardComponent, Settings, Streams
from contracts.topics import DECISIONS, FEEDBACK
from tests.streams.conftest import UNPROVEN
from tests.streams.worker_in_memory import (
    Log,
    MemoryStore,
    WorkerDiedError,
    WorkerInMemory,
    final_rewards,
    final_samples,
)

WINDOW, DELAY, REVISION, UNCLAIMED = 60.0, 600.0, 3600.0, 1e6
START = ManualClock().now()
QUESTIONS = ("How do I reset the router?", "how do I reset the router now?", "What does it cost?")
RULES = Streams(
    window_seconds=WINDOW,
    revision_seconds=REVISION,
    unclaimed_seconds=UNCLAIMED,
    quarantine=UNPROVEN,
    final_signals=("report",),
    reward={
        "rating": RewardComponent(weight=0.5),
        "outcome": RewardComponent(weight=0.3, delay_seconds=DELAY, credit="decay"),
        "report": RewardComponent(weight=1.0),
        "re-ask": RewardComponent(weight=0.25),
    },
)

OFFLINE = (Path(__file__).parent / "offline_join.sql").read_text()


def offline(decisions: list[Decision], feedback: list[Feedback]) -> dict[str, float | None]:
    """Return the reward of each decision by the declared rules, None where there is no signal."""
    found = duckdb.connect()
    found.execute("create table decisions(id text, session_id text, t double, question text)")
    found.execute(
        "create table feedback(id text, decision_id text, session_id text, user_id text, "
        "t double, kind text, score double, name text, retracts text)"
    )
    for one in {d.id: d for d in decisions}.values():
        row = [one.id, one.session_id, _seconds(one), one.messages[-1].content]
        found.execute("insert into decisions values (?, ?, ?, ?)", row)
    for event in {f.id: f for f in feedback}.values():
        at = [event.decision_id, event.session_id, event.user_id, _seconds(event)]
        said = [event.kind, event.score, event.name, event.retracts]
        found.execute(
            "insert into feedback values (?, ?, ?, ?, ?, ?, ?, ?, ?)", [event.id, *at, *said]
        )
    rules = {"window": WINDOW, "delay": DELAY, "revision": REVISION}
    return dict(found.execute(OFFLINE, rules).fetchall())


def _seconds(event: Decision | Feedback) -> float:
    return (event.time - START).total_seconds()


def history(rng: random.Random, decision: Any, feedback: Any) -> tuple[list[Any], list[Any]]:
    """Return the decisions of a few sessions and what was said about them, in event time."""
    decisions: list[Any] = []
    said: list[Any] = []
    for number in range(rng.randint(1, 6)):
        made = decision(
            rng.choice(QUESTIONS),
            id=f"d{number}",
            session_id=f"s{rng.randint(0, 2)}",
            time=START + timedelta(seconds=rng.randint(0, 150)),
        )
        decisions.append(made)
    for number in range(rng.randint(0, 12)):
        made = rng.choice(decisions)
        kind = rng.choice(["rating", "outcome", "report", "retraction", "outcome"])
        on_session = rng.random() < 0.3
        fields: dict[str, Any] = {
            "id": f"f{number}",
            "decision_id": "" if on_session else made.id,
            "time": made.time + timedelta(seconds=rng.choice([0, 5, 30, 59, 60, 61, 300, 900])),
        }
        if kind in ("rating", "outcome"):
            fields["score"] = rng.choice([-1.0, -0.5, 0.5, 1.0])
        if kind == "outcome":
            fields["name"] = rng.choice(["ticket", "sale"])
        if kind == "retraction" and said and rng.random() < 0.8:
            back = rng.choice(said)
            fields |= {"retracts": back.id, "decision_id": back.decision_id}
            fields |= {"session_id": back.session_id}
        elif kind == "retraction":
            fields["retracts"] = f"f{rng.randint(0, 11)}"
        said.append(feedback(made, kind, **fields))
    return decisions, said


def live(rng: random.Random, decisions: list[Any], said: list[Any], *, crashes: bool) -> Log:
    """Feed workers both topics in any order, with duplicates, pauses and deaths; return the log."""
    log, store, clock = Log(), MemoryStore(), ManualClock()
    clock.advance(200)
    events = [*decisions, *said]
    events += rng.choices(events, k=rng.randint(0, 6))
    rng.shuffle(events)
    rules = Settings(streams=RULES)

    def start() -> WorkerInMemory:
        dies_after = rng.randint(0, 12) if crashes and rng.random() < 0.7 else None
        return WorkerInMemory(rules, log, store, clock, dies_after=dies_after)

    worker = start()
    for event in [*events, None]:
        if event is not None:
            log.append(event)
        while True:
            try:
                if rng.random() < 0.7 or event is None:
                    worker.read_all()
                if rng.random() < 0.3 or event is None:
                    clock.advance(rng.choice([1.0, WINDOW, 2 * WINDOW]))
                    worker.close()
                if event is None:
                    worker.read_all()
                    clock.advance(2 * UNCLAIMED)
                    worker.close()
            except WorkerDiedError:
                worker = start()
                continue
            break
    return log


@given(seed=st.integers(min_value=0), crashes=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_order_gives_the_rewards_of_the_offline_join(
    decision: Any, feedback: Any, seed: int, crashes: bool
) -> None:
    rng = random.Random(seed)
    decisions, said = history(rng, decision, feedback)
    log = live(rng, decisions, said, crashes=crashes)
    wanted = offline(decisions, said)
    found = {name: value for name, (_, value) in final_rewards(log.sent).items()}
    assert found == pytest.approx(wanted), seed
    rewarded = {name: value for name, value in wanted.items() if value is not None}
    assert final_samples(log.sent) == pytest.approx(rewarded), seed
    assert log.committed == {
        DECISIONS.name: len(log.records[DECISIONS.name]),
        FEEDBACK.name: len(log.records[FEEDBACK.name]),
    }
