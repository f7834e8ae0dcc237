"""The reward of each decision by the declared rules, from the raw log, as SQL (DuckDB).

It knows nothing of windows in memory, revisions, restarts or partitions, only the rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from contracts.events import Decision, Feedback
from contracts.settings import RewardComponent, Streams

SQL = (Path(__file__).parent / "offline_join.sql").read_text()


def rules(scale: float = 1.0, **section: Any) -> Streams:
    """Return the settings that the SQL is written for, with a window of 60 s times ``scale``."""
    return Streams(
        window_seconds=60.0 * scale,
        revision_seconds=3600.0 * scale,
        final_signals=("report",),
        reward={
            "rating": RewardComponent(weight=0.5),
            "outcome": RewardComponent(weight=0.3, delay_seconds=600.0 * scale, credit="decay"),
            "report": RewardComponent(weight=1.0),
            "re-ask": RewardComponent(weight=0.25),
        },
        **section,
    )


def offline(
    decisions: Iterable[Decision], feedback: Iterable[Feedback], start: datetime, declared: Streams
) -> dict[str, float | None]:
    """Return the reward of each decision by the declared rules, None where there is no signal.

    Times are taken relative to ``start``, so that they are exact as floating-point numbers.
    """

    def seconds(event: Decision | Feedback) -> float:
        return (event.time - start).total_seconds()

    found = duckdb.connect()
    found.execute("create table decisions(id text, session_id text, t double, question text)")
    found.execute(
        "create table feedback(id text, decision_id text, session_id text, user_id text, "
        "t double, kind text, score double, name text, retracts text)"
    )
    asked = [
        [one.id, one.session_id, seconds(one), one.messages[-1].content]
        for one in {d.id: d for d in decisions}.values()
    ]
    said = [
        [f.id, f.decision_id, f.session_id, f.user_id, seconds(f), *_content(f)]
        for f in {f.id: f for f in feedback}.values()
    ]
    if asked:
        found.executemany("insert into decisions values (?, ?, ?, ?)", asked)
    if said:
        found.executemany("insert into feedback values (?, ?, ?, ?, ?, ?, ?, ?, ?)", said)
    outcome = declared.reward["outcome"].delay_seconds
    values = {
        "window": declared.window_seconds,
        "delay": outcome,
        "revision": declared.revision_seconds,
    }
    return dict(found.execute(SQL, values).fetchall())


def _content(said: Feedback) -> list[Any]:
    return [said.kind, said.score, said.name, said.retracts]
