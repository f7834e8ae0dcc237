"""Counts per user, session, topic and policy version, as feature rows; each decision once.

A count is a function of the log: beside the values stands, per partition, the next offset to count
(column ``counted``), written in the same row. A record read again after a crash is below it.
The newest time counted stands there too, exactly: an online store may keep whole seconds only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Literal

import msgspec
from msgspec import Struct

from feature_store.views import AS_OF, FeatureRow, Value
from streams.recent import Bucket, bucket_at, bucket_number, recent_values
from streams.session import RewardFigures

MAX_CACHED = 50_000
MAX_NEWEST = 50_000
"""Decisions per entity and partition whose last count is kept: more than one write tells of, which
after a broken store is `streams.delivery.MAX_GIVEN_UP` facts and those of a step."""

Latest = Callable[[str, Sequence[str]], dict[str, tuple[dict[str, Value], datetime]]]
"""Reads the newest online values and event time per key of a view."""


class Fact(Struct, frozen=True, kw_only=True):
    """What happened to a decision: it was ``opened``, ``closed`` with its reward, or ``revised``.

    Facts of the first two stages come in offset order per partition. ``time`` is when the newest of
    what led to the fact happened. ``figures`` are what is counted of the reward, ``before`` what a
    revision takes the place of, ``index`` the session's `streams.session.Index` as JSON.
    ``dated`` is what the decision itself says of its time, None: ``decided_at``. The latter is
    never of the future, so that it depends on when the record was read.
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
    findings: str = ""
    status: str | None = None
    revision: int | None = None
    figures: RewardFigures = RewardFigures()
    before: RewardFigures = RewardFigures()
    index: str = ""
    dated: datetime | None = None
    trace: dict[str, str] = {}


class Counts(Struct, array_like=True):
    """Counts of one entity over one partition; ``recent`` are those of a window, by bucket.

    ``opened`` and ``closed`` are next offsets. ``newest`` is what was counted of the decisions that
    the last write tells of: a death between its rows may have one of them told again otherwise.
    """

    opened: int = 0
    closed: int = 0
    decisions: int = 0
    violations: int = 0
    rewards: int = 0
    reward_sum: float = 0.0
    reports: int = 0
    revisions: int = 0
    recent: dict[int, Bucket] = {}
    newest: dict[str, RewardFigures] = {}


class Counted(Struct, array_like=True):
    """The column ``counted``: newest time counted, and counts per partition.

    ``acted`` and ``rewarded`` are the times of the decisions that the last action and the last
    reward are of: what is told of an earlier one does not take their place. ``dated`` is the newest
    of what the decisions counted say of their times.
    """

    time: datetime | None = None
    counts: dict[str, Counts] = {}
    acted: datetime | None = None
    rewarded: datetime | None = None
    dated: datetime | None = None


class Entity(Struct):
    """All that is known of one user, session or version.

    ``told`` are the decisions whose rewards were counted since its row was written.
    """

    counted: Counted
    values: dict[str, Value]
    told: set[str] = set()


class Tally:
    """The counts of this process. Not for several threads at once.

    ``shared`` says that other processes count the same entities over other partitions: then what
    they wrote is read again before each write.
    """

    def __init__(self, latest: Latest, window_seconds: float = 3600.0) -> None:
        self._latest, self._window = latest, window_seconds
        self._cache: OrderedDict[tuple[str, str], Entity] = OrderedDict()
        self._unwritten: dict[tuple[str, str], None] = {}

    def forget(self) -> None:
        """Drop what is cached: partitions have changed hands."""
        self._cache.clear()
        self._unwritten.clear()

    def written(self) -> None:
        """Note that all rows given so far were written: until then `rows` gives them again."""
        for place in self._unwritten:
            entity = self._cache[place]
            for counts in entity.counted.counts.values():
                for decision_id in entity.told & counts.newest.keys():
                    del counts.newest[decision_id]
            entity.told.clear()
        self._unwritten.clear()

    def rows(self, facts: Sequence[Fact], *, shared: bool = False) -> list[FeatureRow]:
        """Count facts and return the rows that now hold, one per entity touched."""
        for view, key_of in _KEYS.items():
            again = {key for of, key in self._unwritten if of == view}
            self._load(view, again | {key_of(fact) for fact in facts}, shared=shared)
        # Of rows of one decision and time an offline join could take any: the last one holds.
        decisions: dict[tuple[str, datetime], FeatureRow] = {}
        for fact in facts:
            number = bucket_number(fact.decided_at, self._window)
            for view, key_of in _KEYS.items():
                place = view, key_of(fact)
                entity = self._cache[place]
                counted = _count(entity, fact, number)
                if fact.index and view == "session":
                    counted = entity.values.get("log") != fact.index or counted
                    entity.values["log"] = fact.index
                if counted:
                    self._unwritten[place] = None
            decisions[fact.decision_id, fact.time] = _decision_row(fact)
        # The session comes last: once its index is written, what led to this is not told again.
        places, rows = list(self._unwritten), list(decisions.values())
        rows += [_entity_row(*p, self._cache[p]) for p in places if p[0] != "session"]
        rows += [_entity_row(*p, self._cache[p]) for p in places if p[0] == "session"]
        while len(self._cache) > MAX_CACHED:
            place, _ = self._cache.popitem(last=False)
            self._unwritten.pop(place, None)
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
                known.counted.time = _newest(known.counted.time, counted.time)
                known.counted.dated = _newest(known.counted.dated, counted.dated)
            else:
                self._cache[view, key] = Entity(counted, values)
        for key in keys:
            self._cache.move_to_end((view, key))


_KEYS: dict[str, Callable[[Fact], str]] = {
    "user": attrgetter("user_id"),
    "session": attrgetter("session_id"),
    "policy_version": attrgetter("policy_version"),
    "topic": attrgetter("topic"),
}


def _count(entity: Entity, fact: Fact, number: int) -> bool:
    """Count a fact that was not counted yet, in the bucket of that number; say whether the row
    has changed."""
    newest = entity.counted.time
    counts = entity.counted.counts.setdefault(str(fact.partition), Counts())
    counted_to = counts.opened if fact.stage == "opened" else counts.closed
    # Offsets below with newer times are of a log that began anew. A clock that is ahead makes a
    # decision older at its first reading than at its second, but says the same of it both times.
    dated, known_to = fact.dated or fact.decided_at, entity.counted.dated or newest
    is_known = fact.offset < counted_to and known_to is not None and dated <= known_to
    bucket = bucket_at(counts.recent, number)
    if fact.stage == "opened":
        if is_known:
            return False
        _open(counts, bucket, fact)
        if _is_last(fact, entity.counted.acted):
            entity.values["last_action"], entity.counted.acted = fact.action, fact.decided_at
    elif fact.stage == "closed" and not is_known:
        counts.closed = fact.offset + 1
        _reward(counts, bucket, RewardFigures(), fact)
    else:
        before = counts.newest.get(fact.decision_id)
        if before is None and fact.stage == "closed":
            return False  # told again, and counted long ago
        _reward(counts, bucket, fact.before if before is None else before, fact)
        counts.revisions += 1
    if fact.stage != "opened":
        entity.told.add(fact.decision_id)
        while len(counts.newest) > MAX_NEWEST:
            oldest = next(iter(counts.newest))
            del counts.newest[oldest]
            entity.told.discard(oldest)
    if fact.figures.value is not None and _is_last(fact, entity.counted.rewarded):
        entity.values["last_reward"] = fact.figures.value
        entity.counted.rewarded = fact.decided_at
    entity.counted.time = fact.time if newest is None else max(newest, fact.time)
    entity.counted.dated = dated if known_to is None else max(known_to, dated)
    return True


def _is_last(fact: Fact, known: datetime | None) -> bool:
    return known is None or fact.decided_at >= known


def _open(counts: Counts, bucket: Bucket, fact: Fact) -> None:
    counts.opened = fact.offset + 1
    counts.decisions += 1
    counts.violations += fact.violation
    bucket.decisions += 1
    bucket.violations += fact.violation
    bucket.escalations += fact.escalated
    bucket.tokens += fact.tokens
    bucket.seconds += fact.seconds


def _reward(counts: Counts, bucket: Bucket, before: RewardFigures, fact: Fact) -> None:
    """Count what is said of a decision now in the place of what was said before."""
    figures = fact.figures
    rewards = (figures.value is not None) - (before.value is not None)
    added = (figures.value or 0.0) - (before.value or 0.0)
    counts.rewards += rewards
    counts.reward_sum += added
    bucket.rewards += rewards
    bucket.reward_sum += added
    counts.reports += figures.reports - before.reports
    bucket.re_asks += figures.re_asked - before.re_asked
    counts.newest.pop(fact.decision_id, None)
    counts.newest[fact.decision_id] = figures


def _entity_row(view: str, key: str, entity: Entity) -> FeatureRow:
    total = list(entity.counted.counts.values())
    values: dict[str, Value]
    if view == "session":
        values = {
            "turns": sum([counts.decisions for counts in total]),
            "last_action": entity.values.get("last_action"),
            "last_reward": entity.values.get("last_reward"),
            "log": entity.values.get("log"),
        }
    else:
        rewards = sum([counts.rewards for counts in total])
        reward_sum = sum([counts.reward_sum for counts in total])
        values = {
            "decisions": sum([counts.decisions for counts in total]),
            "violations": sum([counts.violations for counts in total]),
            "rewards": rewards,
            "reward_mean": reward_sum / rewards if rewards else None,
        }
    if view == "user":
        values["reports"] = sum([counts.reports for counts in total])
    assert entity.counted.time is not None
    values |= recent_values([counts.recent for counts in total])
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
        values |= {"reward": fact.figures.value, "status": fact.status, "revision": fact.revision}
    return FeatureRow(view="decision", key=fact.decision_id, values=values, event_time=fact.time)


def _merged(ours: dict[str, Counts], stored: dict[str, Counts]) -> dict[str, Counts]:
    """Keep, of each partition, the entry that has counted more: counts never fall."""

    def progress(counts: Counts) -> tuple[int, int, int]:
        return counts.decisions, counts.closed, counts.revisions

    merged = {**stored, **ours}
    for partition in ours.keys() & stored.keys():
        merged[partition] = max(ours[partition], stored[partition], key=progress)
    return merged


def _newest(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(filter(None, (one, other)), default=None)


def _parse(text: Value) -> Counted:
    if not isinstance(text, str):
        return Counted()
    return msgspec.json.decode(text, type=Counted)
