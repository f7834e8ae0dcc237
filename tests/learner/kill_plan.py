"""What a run of deaths is made of, drawn from one seed: the log, and how each life ends."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from contracts.codec import Record, encode
from contracts.events import BASE_VERSION, Assignment, Event, FeatureValue, Preference, Sample
from contracts.ids import derived_id
from contracts.topics import SAMPLES
from learner.directory import PARTIAL_PREFIX
from tests.learner.nursery import Suicide
from tests.messages import says

MakeSample = Callable[..., Sample]

POINTS = (
    "looked-up",
    "before-save",
    "inside",
    "renamed",
    "inside-version",
    "renamed-version",
    "inside-state",
    "renamed-state",
    "before-announce",
    "after-announce",
)
USERS = 10
LATEST_SECONDS = 1.5
"""A life that is killed at a moment: loading the policy takes about half of it."""


class Death(Struct, frozen=True, kw_only=True):
    """How a life ends: ``seconds`` after its start, or by its own hand at a crash point.

    ``torn``: what was written last is cut off; ``broker_restarts`` while it lives.
    """

    seconds: float | None = None
    suicide: Suicide | None = None
    torn: bool = False
    broker_restarts: bool = False

    def __str__(self) -> str:
        if self.suicide is None:
            how = f"after {self.seconds:.2f} s"
        else:
            where, late = self.suicide.point or "point", 1000 * self.suicide.seconds
            how = f"at {where} {self.suicide.call}" + (f" + {late:.1f} ms" if late else "")
        return how + (", torn" if self.torn else "") + (", broker" if self.broker_restarts else "")


def deaths(rng: random.Random, count: int) -> list[Death]:
    """Draw how so many lives end: in turn at a moment, at a named point and shortly after one."""
    names = [*POINTS]
    rng.shuffle(names)
    found = []
    for number in range(count):
        kind = number % 3
        suicide = None
        if kind == 1:
            suicide = Suicide(call=rng.randint(1, 2), point=names[number // 3 % len(names)])
        elif kind == 2:
            suicide = Suicide(call=rng.randint(1, 8), seconds=rng.uniform(0.0, 0.012))
        found.append(
            Death(
                seconds=rng.uniform(0.0, LATEST_SECONDS) if kind == 0 else None,
                suicide=suicide,
                torn=rng.random() < 0.35,
                broker_restarts=number % 8 == 3,
            )
        )
    return found


class Log:
    """The records of `samples`, drawn piece by piece: with duplicates, revisions and what is none
    of this learner's business. Nobody said anything about ``silent_share`` of them, and half of
    these are violations; the gateway logged the features of ``logged_share``."""

    def __init__(
        self,
        rng: random.Random,
        make_sample: MakeSample,
        *,
        logged_share: float = 1.0,
        silent_share: float = 0.0,
    ) -> None:
        self._rng = rng
        self._silent_share = silent_share
        self._logged_share = logged_share
        self._make = make_sample
        self._made: list[Sample] = []
        self._number = 0

    def draw(self, count: int, versions: Sequence[str]) -> list[Record]:
        """Return ``count`` records, of answers by these versions and by the base."""
        return [self._record(versions) for _ in range(count)]

    def _record(self, versions: Sequence[str]) -> Record:
        kind = self._rng.random()
        if kind < 0.02:
            return Record(SAMPLES, b"k", b"{not json", [])
        return encode(SAMPLES, self._event(kind, versions), source="test")

    def _event(self, kind: float, versions: Sequence[str]) -> Event:
        if kind < 0.06:
            return self._new_sample(Assignment(policy="another", policy_version=BASE_VERSION))
        if self._made and kind < 0.10:
            return _preference(self._rng.choice(self._made))
        if self._made and kind < 0.20:
            return self._rng.choice(self._made[-60:])  # again, as restarted streams send it
        if self._made and kind < 0.32:
            return self._revised(self._rng.choice(self._made[-40:]))
        served = self._rng.choice([BASE_VERSION, *versions[-4:]])
        made = self._new_sample(Assignment(policy="assistant", policy_version=served))
        self._made.append(made)
        return made

    def _new_sample(self, assignment: Assignment) -> Sample:
        self._number += 1
        user = f"user-{self._rng.randrange(USERS)}"
        mean = self._rng.choice([None, -0.5, 0.25])
        logged = self._rng.random() < self._logged_share
        features = {"user.reward_mean": FeatureValue(value=mean)} if logged else {}
        quiet = self._silent_share > 0.0 and self._rng.random() < self._silent_share
        return self._make(
            self._number,
            user_id=user,
            features=features,
            assignment=assignment,
            status="censored" if quiet else "final",
            violation=quiet and self._rng.random() < 0.5,
        )

    def _revised(self, sample: Sample) -> Sample:
        revision = 1 + max(s.revision for s in self._made if s.decision_id == sample.decision_id)
        made = replace(
            sample,
            id=derived_id(sample.decision_id, str(revision)),
            revision=revision,
            status="final",
            reward=self._rng.choice((-1.0, 0.25, 0.75)),
            withdrawn=self._rng.random() < 0.25,
        )
        self._made.append(made)
        return made


def _preference(sample: Sample) -> Preference:
    return Preference(
        id=derived_id("preference", sample.id),
        time=sample.time,
        decision_id=sample.decision_id,
        feedback_id=derived_id("feedback", sample.id),
        session_id=sample.session_id,
        user_id=sample.user_id,
        assignment=sample.assignment,
        messages=sample.messages,
        chosen=says("w3"),
        rejected=says("w4"),
        prompt_token_ids=sample.prompt_token_ids,
        rejected_token_ids=sample.token_ids,
        rejected_logprobs=sample.logprobs,
        decided_at=sample.decided_at,
        feedback_time=sample.feedback_time,
    )


def newest(directory: Path) -> list[Path]:
    """Return the directories in one, the newest first; what is unfinished does not count."""
    found = [p for p in directory.glob("*") if not p.name.startswith(PARTIAL_PREFIX)]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def tear(rng: random.Random, directory: Path) -> str:
    """Cut a file of a directory off, or take it away, as after a power cut; say which."""
    files = sorted(directory.iterdir())
    if not files:
        return f"{directory.name[:12]} has lost all already"
    path = rng.choice(files)
    size = path.stat().st_size
    length = rng.randrange(max(size, 1))
    if rng.random() < 0.2:
        path.unlink()
        return f"{directory.name[:12]}/{path.name} removed"
    with path.open("r+b") as file:
        file.truncate(length)
    return f"{directory.name[:12]}/{path.name} cut to {length} of {size}"
