"""Counts per user, session, topic and policy version, as feature rows; each decision once.

A count is a function of the log: beside the values stands, per partition, the next offset to count
(column ``counted``), written in the same row. A record read again after a crash is below it.
The newest time counted stands there too, exactly: an online store may keep whole seconds only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct

from feature_store.views import AS_OF, FeatureRow, Value
from streams.recent import Bucket, bucket_at, bucket_number, recent_values

MAX_CACHED = 50_000

Latest = Callable[[str, Sequence[str]], dict[str, tuple[dict[str, Value], datetime]]]
"""Reads the newest online values and event time per key of a view."""


class Fact(Struct, frozen=True, kw_only=True):
    """What happened to a decision: it was ``opened``, ``closed`` with its reward, or ``revised``.

    Facts of one stage come in offset order per partition; those of a revision have the offset of
    what led to it, ``by_feedback`` says in which topic; ``reports`` are those that came with it.
    ``time`` is when the newest of what led to the fact happened. ``before`` is the reward that a
    revision takes the place of, ``index`` the session's `streams.session.Index` as JSON.
    """

    stage: Literal["opened", "closed", "revised"]
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
    decided_at: datetime
    topic: str = ""
    tokens: int = 0
    seconds: float = 0.0
    escalated: bool = False
    re_asked: bool = False
    re_asked_before: bool = False
    findings: str = ""
    status: str | None = None
    reward: float | None = None
    revision: int | None = None
    before: float | None = None
    by_feedback: bool = False
    index: str = ""
    reports: int = 0
    trace: dict[str, str] = {}


class Counts(Struct, array_like=True):
    """Counts of one entity over one partition; ``recent`` are those of a window, by bucket.

    ``opened`` and ``closed`` are next offsets, and so are those of what led to revisions, by topic.
    """

    opened: int = 0
    closed: int = 0
    decisions: int = 0
    violations: int = 0
    rewards: int = 0
    reward_sum: float = 0.0
    reports: int = 0
    revised_by_decisions: int = 0
    revised_by_feedback: int = 0
    recent: dict[int, Bucket] = {}

    def is_revised_to(self, fact: Fact) -> int:
        """Return the next offset to count, of the topic that led to a revision."""
        return self.revised_by_feedback if fact.by_feedback else self.revised_by_decisions


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

    def __init__(self, latest: Latest, window_seconds: float = 3600.0) -> None:
        self._latest, self._window = latest, window_seconds
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
        ends = self._ends(facts)
        for fact in facts:
            for view, key_of in _KEYS.items():
                place = view, key_of(fact)
                entity = self._cache[place]
                if fact.stage == "revised":
                    counts = fact.offset >= ends[*place, fact.partition, fact.by_feedback]
                    counted = counts and _revise(entity, fact, self._window)
                else:
                    counted = _count(entity, fact, self._window)
                if fact.index and view == "session":
                    counted = entity.values.get("log") != fact.index or counted
                    entity.values["log"] = fact.index
                if counted:
                    touched[place] = None
            rows.append(_decision_row(fact))
        # The session comes last: once its index is written, what led to this is not told again.
        rows += [_entity_row(*p, self._cache[p]) for p in touched if p[0] != "session"]
        rows += [_entity_row(*p, self._cache[p]) for p in touched if p[0] == "session"]
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return rows

    def _ends(self, facts: Sequence[Fact]) -> dict[tuple[str, str, int, bool], int]:
        """Return up to where revisions were counted before: one offset may lead to several."""
        return {
            (view, key_of(fact), fact.partition, fact.by_feedback): (
                self._cache[view, key_of(fact)]
                .counted.counts.get(str(fact.partition), Counts())
                .is_revised_to(fact)
            )
            for fact in facts
            if fact.stage == "revised"
            for view, key_of in _KEYS.items()
        }

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
    "topic": lambda fact: fact.topic,
}


def _count(entity: Entity, fact: Fact, window_seconds: float) -> bool:
    newest = entity.counted.time
    counts = entity.counted.counts.setdefault(str(fact.partition), Counts())
    counted_to = counts.opened if fact.stage == "opened" else counts.closed
    known = newest is not None and fact.decided_at <= newest
    if fact.offset < counted_to and known:
        return False  # offsets below with newer times are of a log that began anew
    bucket = bucket_at(counts.recent, bucket_number(fact.decided_at, window_seconds))
    if fact.stage == "opened":
        counts.opened = fact.offset + 1
        counts.decisions += 1
        counts.violations += fact.violation
        bucket.decisions += 1
        bucket.violations += fact.violation
        bucket.escalations += fact.escalated
        bucket.tokens += fact.tokens
        bucket.seconds += fact.seconds
        if not known:
            entity.values["last_action"] = fact.action
    else:
        counts.closed = fact.offset + 1
        counts.reports += fact.reports
        bucket.re_asks += fact.re_asked
        if fact.reward is not None:
            counts.rewards += 1
            counts.reward_sum += fact.reward
            bucket.rewards += 1
            bucket.reward_sum += fact.reward
            entity.values["last_reward"] = fact.reward
    entity.counted.time = fact.time if newest is None else max(newest, fact.time)
    return True


def _revise(entity: Entity, fact: Fact, window_seconds: float) -> bool:
    """Put a reward in the place of the one before."""
    counts = entity.counted.counts.setdefault(str(fact.partition), Counts())
    if fact.by_feedback:
        counts.revised_by_feedback = fact.offset + 1
    else:
        counts.revised_by_decisions = fact.offset + 1
    bucket = bucket_at(counts.recent, bucket_number(fact.decided_at, window_seconds))
    for sums in (counts, bucket):
        sums.rewards += (fact.reward is not None) - (fact.before is not None)
        sums.reward_sum += (fact.reward or 0.0) - (fact.before or 0.0)
    bucket.re_asks += fact.re_asked - fact.re_asked_before
    counts.reports += fact.reports
    if fact.reward is not None:
        entity.values["last_reward"] = fact.reward
    newest = entity.counted.time
    entity.counted.time = fact.time if newest is None else max(newest, fact.time)
    return True


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
            "log": entity.values.get("log"),
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
    assert entity.counted.time is not None
    values |= recent_values(counts.recent for counts in total)
    values[AS_OF] = entity.counted.time.timestamp()
    values["counted"] = msgspec.json.encode(entity.counted).decode()
    return FeatureRow(view=view, key=key, values=values, event_time=entity.counted.time)


def _decision_row(fact: Fact) -> FeatureRow:
    values: dict[str, Value] = {
        "risk": fact.risk,
        "violation": int(fact.violation),
        "findings": fact.findings,
    }
    if fact.stage != "opened":
        values |= {"reward": fact.reward, "status": fact.status, "revision": fact.revision}
    return FeatureRow(view="decision", key=fact.decision_id, values=values, event_time=fact.time)


def _merged(ours: dict[str, Counts], stored: dict[str, Counts]) -> dict[str, Counts]:
    """Keep, of each partition, the entry that has counted more: counts never fall."""

    def progress(counts: Counts) -> tuple[int, int, int, int]:
        revised = counts.revised_by_decisions + counts.revised_by_feedback
        return counts.decisions, counts.closed, revised, counts.rewards

    merged = {**stored, **ours}
    for partition in ours.keys() & stored.keys():
        merged[partition] = max(ours[partition], stored[partition], key=progress)
    return merged


def _parse(text: Value) -> Counted:
    if not isinstance(text, str):
        return Counted()
    return msgspec.json.decode(text, type=Counted)
