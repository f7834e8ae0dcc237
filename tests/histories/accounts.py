"""What the log must hold in the end, worked out from the raw log alone, against what it holds.

The rewards are those of the offline join in SQL; the fate of each feedback event follows from the
declared rules, the feature counts from decisions and last rewards. Nothing here knows of workers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
import pytest
from msgspec import Struct

from contracts.audit import broken_links
from contracts.broker import Received, read_to_end
from contracts.codec import to_json
from contracts.events import (
    AuditRecord,
    DeadLetter,
    Decision,
    Event,
    Feedback,
    Reward,
    Safety,
    Sample,
)
from contracts.settings import Kafka, Streams
from contracts.tokens import is_proven
from contracts.topics import AUDIT, DEAD_LETTERS, DECISIONS, FEEDBACK, REWARDS, SAMPLES, Topic
from feature_store.writer import FeatureWriter
from tests.streams.offline_join import offline
from tests.streams.worker_in_memory import final_rewards, final_samples

Fate = Literal["joined", "late", "quarantined"]
TOPICS = (DECISIONS, FEEDBACK, REWARDS, SAMPLES, DEAD_LETTERS, AUDIT)
TIMES = ("time", "feedback_time")
"""Fields of what is derived that say when it was made, and nothing of what it says."""

Features = dict[tuple[str, str], dict[str, Any]]


class Accounts(Struct, frozen=True):
    """All that is in the log, in the log's order per partition."""

    records: list[tuple[Received, Event]]
    declared: Streams
    secret: str
    start: datetime

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the events of a kind, repetitions included."""
        return [event for _, event in self.records if isinstance(event, kind)]

    @property
    def decisions(self) -> dict[str, Decision]:
        return {one.id: one for one in self.of(Decision)}

    @property
    def feedback(self) -> dict[str, Feedback]:
        return {one.id: one for one in self.of(Feedback)}

    def fates(self) -> dict[str, Fate]:
        """Return what must become of each feedback event by the rules."""
        decisions, sessions = self.decisions, defaultdict(list)
        for decision in decisions.values():
            sessions[decision.session_id].append(decision)
        return {f.id: self._fate(f, sessions[f.session_id]) for f in self.feedback.values()}

    def _fate(self, said: Feedback, session: list[Decision]) -> Fate:
        if not is_proven(self.secret.encode(), said):
            return "quarantined"
        reach = self._reach(said)
        if said.decision_id:
            own = [one for one in session if one.id == said.decision_id]
            in_time = [one for one in own if said.time <= one.time + reach]
            return "joined" if in_time else "late" if own else "quarantined"
        about = [one for one in session if one.time <= said.time <= one.time + reach]
        return "joined" if about else "quarantined"

    def _reach(self, said: Feedback) -> timedelta:
        delay = self.declared.reward["outcome"].delay_seconds or 0.0
        by_kind = {"outcome": delay, "retraction": delay + self.declared.revision_seconds}
        return timedelta(seconds=by_kind.get(said.kind, self.declared.window_seconds))

    def unclaimed(self, *, ever: bool = False) -> set[str]:
        """Return feedback that waits for a decision and is not given up yet, or ``ever`` waited."""
        letters = self.letters()
        given_up = {
            event.id
            for record, event in self.records
            if (record.topic, record.partition, record.offset) in letters
        }
        return {
            name
            for name, fate in self.fates().items()
            if fate == "quarantined"
            and is_proven(self.secret.encode(), self.feedback[name])
            and (ever or name not in given_up)
        }

    def waiting(self, *, ever: bool = False) -> dict[str, int]:
        """Return by partition the oldest offset of unclaimed feedback: none beyond is committed."""
        names, offsets = self.unclaimed(ever=ever), dict[str, int]()
        for record, event in self.records:
            if isinstance(event, Feedback) and event.id in names:
                offsets.setdefault(f"{FEEDBACK.name}/{record.partition}", record.offset)
        return offsets

    def letters(self) -> dict[tuple[Topic, int, int], DeadLetter]:
        """Return the dead letters of feedback by the place of their records."""
        return {
            (FEEDBACK, letter.partition, letter.offset): letter
            for letter in self.of(DeadLetter)
            if letter.topic.endswith(FEEDBACK.name)
        }


def read(kafka: Kafka, declared: Streams, secret: str, start: datetime) -> Accounts:
    """Return what is in the log now; a record that is no event fails."""
    found = [(record, record.event()) for record in read_to_end(kafka, TOPICS, "test-accounts")]
    return Accounts(found, declared, secret, start)


def differences(accounts: Accounts, acknowledged: Iterable[str]) -> list[str]:
    """Return, in words, everything that is not as it must be; empty when all is."""
    return [
        *_lost(accounts, set(acknowledged)),
        *_rewards(accounts),
        *_repeated(accounts),
        *_feedback(accounts),
        *_chains(accounts),
    ]


def _lost(accounts: Accounts, acknowledged: set[str]) -> list[str]:
    found = accounts.decisions.keys() | accounts.feedback.keys()
    return [
        *(f"{one} was acknowledged and is not in the log" for one in acknowledged - found),
        *(f"{one} is in the log and was not acknowledged" for one in found - acknowledged),
    ]


def wanted_rewards(accounts: Accounts) -> dict[str, float | None]:
    """Return the reward of each decision by the offline join over the feedback that is trusted."""
    fates = accounts.fates()
    trusted = [one for one in accounts.feedback.values() if fates[one.id] != "quarantined"]
    return offline(accounts.decisions.values(), trusted, accounts.start, accounts.declared)


def _rewards(accounts: Accounts) -> list[str]:
    values = wanted_rewards(accounts)
    wanted = {
        name: ("censored" if value is None else "final", value) for name, value in values.items()
    }
    samples = {name: value for name, value in values.items() if value is not None}
    judged = {one.decision_id for one in accounts.of(Safety)}
    return [
        *_unequal("last reward", wanted, final_rewards(accounts.of(Reward))),
        *_unequal("last sample", samples, final_samples(accounts.of(Sample))),
        *(f"{one} was not judged" for one in accounts.decisions.keys() - judged),
    ]


def _repeated(accounts: Accounts) -> list[str]:
    """Say which ids of rewards, samples and judgements mean two different things."""
    said: dict[str, set[bytes]] = defaultdict(set)
    for event in [*accounts.of(Reward), *accounts.of(Sample), *accounts.of(Safety)]:
        fields = msgspec.to_builtins(event)
        said[event.id].add(to_json({n: v for n, v in fields.items() if n not in TIMES}))
    return [
        f"{name} says {len(texts)} different things"
        for name, texts in said.items()
        if len(texts) > 1
    ]


def _feedback(accounts: Accounts) -> list[str]:
    """Compare the fate of each feedback event with what audit and dead letters say of it."""
    found: dict[str, set[str]] = defaultdict(set)
    for record in accounts.of(AuditRecord):
        if record.action == "feedback.joined":
            found[record.detail["feedback_id"]].add("joined")
        elif record.action == "feedback.dropped" and record.reason == "late":
            found[record.detail["feedback_id"]].add("late")
    letters = accounts.letters()
    for record, event in accounts.records:
        letter = letters.get((record.topic, record.partition, record.offset))
        if letter is not None:
            found[event.id].add(letter.reason)
    unclaimed = accounts.unclaimed()
    return [
        f"feedback {name} must be {fate}, is {sorted(found[name])}"
        for name, fate in accounts.fates().items()
        if found[name] != {fate} and not (name in unclaimed and not found[name])
    ]


def _chains(accounts: Accounts) -> list[str]:
    """Return what is wrong with the chains; a repetition is dropped by its id."""
    chains: dict[str, dict[str, AuditRecord]] = defaultdict(dict)
    for record in accounts.of(AuditRecord):
        chains[record.producer][record.id] = record
    return [
        problem
        for chain in chains.values()
        for problem in broken_links(sorted(chain.values(), key=lambda one: one.sequence))
    ]


def wanted_features(accounts: Accounts) -> Features:
    """Return the counts of each user, session and version that follow from the log."""
    values = {name: value for name, (_, value) in final_rewards(accounts.of(Reward)).items()}
    violations = {one.decision_id: one.violation for one in accounts.of(Safety)}
    fates = accounts.fates()
    reported = Counter(
        said.decision_id
        for said in accounts.feedback.values()
        if said.kind == "report" and fates[said.id] == "joined"
    )
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in accounts.decisions.values():
        groups["user", one.user_id].append(one.id)
        groups["session", one.session_id].append(one.id)
        groups["policy_version", one.assignment.policy_version].append(one.id)
    wanted: Features = {}
    for place, names in groups.items():
        if place[0] == "session":
            wanted[place] = {"turns": len(names)}
            continue
        rewards = [value for name in names if (value := values.get(name)) is not None]
        wanted[place] = {
            "decisions": len(names),
            "violations": sum(violations.get(name, False) for name in names),
            "rewards": len(rewards),
            "reward_mean": sum(rewards) / len(rewards) if rewards else None,
        }
        if place[0] == "user":
            wanted[place]["reports"] = sum(reported[name] for name in names)
    return wanted


def found_features(writer: FeatureWriter, wanted: Features) -> Features:
    """Return what the online store says of the same entities, in the same columns."""
    found: Features = {}
    for view in {view for view, _ in wanted}:
        keys = [key for of, key in wanted if of == view]
        for key, (values, _) in writer.latest(view, keys).items():
            found[view, key] = {name: values.get(name) for name in wanted[view, key]}
    return found


def feature_differences(writer: FeatureWriter, wanted: Features) -> list[str]:
    """Return, in words, which counts in the online store are not those of the log."""
    return _unequal("features", wanted, found_features(writer, wanted))


def replay_differences(live: Accounts, again: Accounts) -> list[str]:
    """Return, in words, what a replay of the raw log says otherwise than the live run."""
    return [
        *_unequal(
            "replayed reward", final_rewards(live.of(Reward)), final_rewards(again.of(Reward))
        ),
        *_unequal(
            "replayed sample", final_samples(live.of(Sample)), final_samples(again.of(Sample))
        ),
    ]


def _unequal(what: str, wanted: Mapping[Any, Any], found: Mapping[Any, Any]) -> list[str]:
    return [
        f"{what} of {name}: must be {wanted.get(name)}, is {found.get(name)}"
        for name in {**wanted, **found}
        if name not in wanted or name not in found or not _same(wanted[name], found[name])
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[n], other[n]) for n in one)
    if isinstance(one, float) and isinstance(other, float):
        return bool(one == pytest.approx(other, abs=1e-9))
    return bool(one == other)
