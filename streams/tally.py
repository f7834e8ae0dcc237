"""Counts per user, session and policy version, as feature rows; each decision counts once.

A count is a function of the log: beside the values stands, per partition, the next offset to count
(column ``counted``), written in the same row. A record read again after a crash is below it.
The newest time counted stands there too, exactly: an online store may keep whole seconds only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct

from feature_store.views import FeatureRow, Value

MAX_CACHED = 50_000

Latest = Callable[[str, Sequence[str]], dict[str, tuple[dict[str, Value], datetime]]]
"""Reads the newest online values and event time per key of a view."""


class Fact(Struct, frozen=True, kw_only=True):
    """What happened to a decision: it was ``opened``, or ``closed`` with its reward.

    Facts of one stage come in offset order per partition.
    """

    stage: Literal["opened", "closed"]
    partition: int
    offset: int
    decision_id: str
    user_id: str
    session_id: str
    policy_version: str
    action: str
    risk: float
    violation: bool
    time: datetime
    status: str | None = None
    reward: float | None = None
    revision: int | None = None
    reports: int = 0
    trace: dict[str, str] = {}


class Counts(Struct, array_like=True):
    """Counts of one entity over one partition; ``opened`` and ``closed`` are next offsets."""

    opened: int = 0
    closed: int = 0
    decisions: int = 0
    violations: int = 0
    rewards: int = 0
    reward_sum: float = 0.0
    reports: int = 0


class Counted(Struct, array_like=True):
    """The column ``counted``: newest time counted, and counts per partition."""

    time: datetime | None = None
    counts: dict[str, Counts] = {}


class Entity(Struct):
    """All that is known of one user, session or version."""

    counted: Counted
    values: dict[str, Value]


class Tally:
    """The counts of this process. Not for several threads at once.

    ``shared`` says that other processes count the same entities over other partitions: then what
    they wrote is read again before each write.
    """

    def __init__(self, latest: Latest) -> None:
        self._latest = latest
        self._cache: OrderedDict[tuple[str, str], Entity] = OrderedDict()

    def forget(self) -> None:
        """Drop what is cached: partitions have changed hands."""
        self._cache.clear()

    def rows(self, facts: Sequence[Fact], *, shared: bool = False) -> list[FeatureRow]:
        """Count facts and return the rows that now hold, one per entity touched."""
        touched: dict[tuple[str, str], None] = {}
        for view, key_of in _KEYS.items():
            self._load(view, {key_of(fact) for fact in facts}, shared=shared)
        rows = []
        for fact in facts:
            for view, key_of in _KEYS.items():
                place = view, key_of(fact)
                if _count(self._cache[place], fact):
                    touched[place] = None
            rows.append(_decision_row(fact))
        rows += [_entity_row(*place, self._cache[place]) for place in touched]
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return rows

    def _load(self, view: str, keys: Iterable[str], *, shared: bool) -> None:
        keys = list(keys)
        wanted = keys if shared else [key for key in keys if (view, key) not in self._cache]
        stored = self._latest(view, wanted)
        for key in wanted:
            values = dict(stored[key][0]) if key in stored else {}
            counted = _parse(values.pop("counted", None))
            known = self._cache.get((view, key))
            if known is not None:
                known.counted.counts = _merged(known.counted.counts, counted.counts)
                known.counted.time = max(filter(None, (known.counted.time, counted.time)))
            else:
                self._cache[view, key] = Entity(counted, values)
        for key in keys:
            self._cache.move_to_end((view, key))


_KEYS: dict[str, Callable[[Fact], str]] = {
    "user": lambda fact: fact.user_id,
    "session": lambda fact: fact.session_id,
    "policy_version": lambda fact: fact.policy_version,
}


def _count(entity: Entity, fact: Fact) -> bool:
    newest = entity.counted.time
    counts = entity.counted.counts.setdefault(str(fact.partition), Counts())
    counted_to = counts.opened if fact.stage == "opened" else counts.closed
    known = newest is not None and fact.time <= newest
    if fact.offset < counted_to and known:
        return False  # offsets below with newer times are of a log that began anew
    if fact.stage == "opened":
        counts.opened = fact.offset + 1
        counts.decisions += 1
        counts.violations += fact.violation
        if not known:
            entity.values["last_action"] = fact.action
    else:
        counts.closed = fact.offset + 1
        counts.reports += fact.reports
        if fact.reward is not None:
            counts.rewards += 1
            counts.reward_sum += fact.reward
            entity.values["last_reward"] = fact.reward
    entity.counted.time = fact.time if newest is None else max(newest, fact.time)
    return True


def closed_at(rows: Mapping[str, tuple[dict[str, Value], datetime]]) -> dict[str, int]:
    """Return, of rows of the view `decision`, the offset each closed decision was read at."""
    offsets = {key: values.get("offset") for key, (values, _) in rows.items()}
    return {key: offset for key, offset in offsets.items() if isinstance(offset, int)}


def _entity_row(view: str, key: str, entity: Entity) -> FeatureRow:
    total = list(entity.counted.counts.values())
    rewards = sum(counts.rewards for counts in total)
    decisions = sum(counts.decisions for counts in total)
    values: dict[str, Value]
    if view == "session":
        values = {
            "turns": decisions,
            "last_action": entity.values.get("last_action"),
            "last_reward": entity.values.get("last_reward"),
        }
    else:
        reward_sum = sum(counts.reward_sum for counts in total)
        values = {
            "decisions": decisions,
            "violations": sum(counts.violations for counts in total),
            "rewards": rewards,
            "reward_mean": reward_sum / rewards if rewards else None,
        }
    if view == "user":
        values["reports"] = sum(counts.reports for counts in total)
    values["counted"] = msgspec.json.encode(entity.counted).decode()
    assert entity.counted.time is not None
    return FeatureRow(view=view, key=key, values=values, event_time=entity.counted.time)


def _decision_row(fact: Fact) -> FeatureRow:
    values: dict[str, Value] = {"risk": fact.risk, "violation": int(fact.violation)}
    if fact.stage == "closed":
        values |= {"reward": fact.reward, "status": fact.status, "revision": fact.revision}
        values["offset"] = fact.offset
    return FeatureRow(view="decision", key=fact.decision_id, values=values, event_time=fact.time)


def _merged(ours: dict[str, Counts], stored: dict[str, Counts]) -> dict[str, Counts]:
    """Keep, of each partition, the entry that has counted more: counts never fall."""

    def progress(counts: Counts) -> tuple[int, int, int]:
        return counts.decisions, counts.rewards, counts.closed

    merged = {**stored, **ours}
    for partition in ours.keys() & stored.keys():
        merged[partition] = max(ours[partition], stored[partition], key=progress)
    return merged


def _parse(text: Value) -> Counted:
    if not isinstance(text, str):
        return Counted()
    return msgspec.json.decode(text, type=Counted)
