"""Any order, duplication and delay of a history gives the same rewards as a join written apart.

The other join is SQL over the raw log (DuckDB): it knows nothing of windows, sessions in memory,
revisions or crashes, only the declared rules.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contracts.clock import ManualClock
from contracts.settings import Settings
from contracts.topics import DECISIONS, FEEDBACK
from tests.streams.conftest import UNPROVEN
from tests.streams.offline_join import offline, rules
from tests.streams.random_history import history
from tests.streams.worker_in_memory import (
    Log,
    MemoryStore,
    WorkerDiedError,
    WorkerInMemory,
    final_rewards,
    final_samples,
)

WINDOW, UNCLAIMED = 60.0, 1e6
START = ManualClock().now()
RULES = rules(unclaimed_seconds=UNCLAIMED, quarantine=UNPROVEN)


def live(
    rng: random.Random, decisions: list[Any], said: list[Any], *, crashes: bool
) -> tuple[Log, MemoryStore]:
    """Feed workers both topics in any order, with duplicates, pauses and deaths."""
    log, store, clock = Log(), MemoryStore(), ManualClock()
    clock.advance(200)
    events = [*decisions, *said]
    events += rng.choices(events, k=rng.randint(0, 6))
    rng.shuffle(events)
    declared = Settings(streams=RULES)

    def start() -> WorkerInMemory:
        dies_after = rng.randint(0, 12) if crashes and rng.random() < 0.7 else None
        return WorkerInMemory(declared, log, store, clock, dies_after=dies_after)

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
    return log, store


@given(seed=st.integers(min_value=0), crashes=st.booleans())
@example(seed=18817, crashes=True)  # what a session said, committed, then about one more decision
@settings(max_examples=300, deadline=None)
def test_any_order_gives_the_rewards_of_the_offline_join(
    decision: Any, feedback: Any, seed: int, crashes: bool
) -> None:
    rng = random.Random(seed)
    decisions, said = history(rng, decision, feedback, START)
    log, store = live(rng, decisions, said, crashes=crashes)
    wanted = offline(decisions, said, START, RULES)
    found = {name: value for name, (_, value) in final_rewards(log.sent).items()}
    assert found == pytest.approx(wanted), seed
    rewarded = {name: value for name, value in wanted.items() if value is not None}
    assert final_samples(log.sent) == pytest.approx(rewarded), seed
    assert log.committed == {
        DECISIONS.name: len(log.records[DECISIONS.name]),
        FEEDBACK.name: len(log.records[FEEDBACK.name]),
    }
    assert counts(store) == pytest.approx(counted(decisions, said, wanted)), seed


def counts(store: MemoryStore) -> dict[str, Any]:
    """Return what the store counts of users and sessions."""
    rows = {key: row.values for (view, key), row in store.rows.items() if view == "user"}
    turns = {
        key: row.values["turns"] for (view, key), row in store.rows.items() if view == "session"
    }
    return {
        **{f"{key} decisions": values["decisions"] for key, values in rows.items()},
        **{f"{key} rewards": values["rewards"] for key, values in rows.items()},
        **{f"{key} mean": values["reward_mean"] or 0.0 for key, values in rows.items()},
        **{f"{key} reports": values["reports"] for key, values in rows.items()},
        **{f"{key} turns": number for key, number in turns.items()},
    }


def counted(
    decisions: list[Any], said: list[Any], rewards: dict[str, float | None]
) -> dict[str, float]:
    """Return what the history says should be counted of the one user and the sessions."""
    values = [value for value in rewards.values() if value is not None]
    times = {decision.id: decision.time for decision in decisions}
    in_time = [
        f
        for f in said
        if f.decision_id and f.time <= times[f.decision_id] + timedelta(seconds=WINDOW)
    ]
    return {
        "user-1 decisions": len(decisions),
        "user-1 reports": sum(one.kind == "report" for one in in_time),
        "user-1 rewards": len(values),
        "user-1 mean": sum(values) / len(values) if values else 0.0,
        **{f"{name} turns": n for name, n in Counter(d.session_id for d in decisions).items()},
    }
