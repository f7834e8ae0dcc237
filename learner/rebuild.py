"""Makes versions again from the log, by the learner's own code, in a directory of its own.

The live learner's state, topics and versions are only read. With a user left out, the outcome is
what a learner would have made of the same log without this user's records; an answer of the first
run's n-th version then counts as one of the n-th.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter, deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from contracts.broker import Received
from contracts.clock import Clock
from contracts.errors import SettingsError, UnavailableError
from contracts.events import BASE_VERSION
from contracts.settings import Settings
from contracts.signing import make_signing_key
from learner import checkpoint
from learner.adapters import ADAPTER_WEIGHTS
from learner.directory import versions_directory, writing
from learner.intake import sample_of
from learner.ledger_means import LedgerMeans
from learner.loop import Learner
from learner.outlet import Silence
from learner.pulse import Pulse
from learner.replay_compare import first_unlike, remade
from learner.replay_log import LogPart, Proof, Waiting
from learner.replay_report import Removal, ReplayOrder, ReplayReport, Step
from learner.replay_user import Presence, is_of_user, presence
from learner.user_features import RewardMeans
from learner.version_line import (
    Link,
    after,
    before,
    check_one_process,
    line_of,
    settings_of,
    with_state,
)
from learner.version_state import state_of

Tell = Callable[[Step], None]


class Rebuild:
    """One replay: a learner that reads a part of the log again."""

    def __init__(
        self,
        settings: Settings,
        order: ReplayOrder,
        clock: Clock,
        stored_means: RewardMeans,
        tell: Tell,
        waiting: Waiting = nullcontext,
    ) -> None:
        self.order = order
        self.live = settings
        self.clock = clock
        self.tell = tell
        self.waiting = waiting
        self.removed: dict[str, int] = {}
        self.records = self.made = 0
        self.certain = True
        self._since_commit: deque[Received] = deque()
        self.line = line_of(settings, order.end)
        self.end = self.line[-1]
        check_one_process([self.end])  # before the log is searched for the user
        self.present = self._present()
        self.start = order.start or self._choose_start()
        self.part = after(settings, self.line, self.start)
        check_one_process(self.part)
        self.means = LedgerMeans(self.part, stored_means, same_batches=not order.without_user)
        self.proof = Proof(self.part)
        self.log = LogPart(settings.kafka, self.part[0].first, self.end.next, waiting)
        self.settings = _own_place(settings, Path(order.directory))

    def _present(self) -> Presence | None:
        """Return where the user is, None when none is left out; SettingsError when nowhere."""
        user = self.order.without_user
        if not user:
            return None
        found = self._presence(self.end.next)
        if found.first is None and found.certain:
            raise SettingsError(
                f"neither version {self.end.version[:12]} nor one before it has read a sample of "
                f"user {user!r} under policy {self.live.policy.name}, so there is nothing to leave "
                "out; give --without-user an id as it stands in the events, with the same case"
            )
        return found

    def _choose_start(self) -> str:
        """Return the nearest start, or the nearest from before the user's first sample."""
        kept, found = with_state(self.live, self.line[:-1]), self.present
        if found is None:
            return kept[-1].version if kept else BASE_VERSION
        if not found.certain:
            names = ", ".join(link.version[:12] for link in kept) or "none is left"
            raise SettingsError(
                f"the log begins at offset {found.begins}, and not every ledger before it is there "
                "and names users, so whether this one was there cannot be told; give --from a "
                f"version that is older than the user; there are: {names}"
            )
        older = [link for link in kept if found.first is None or link.next <= found.first]
        return older[-1].version if older else BASE_VERSION

    def _presence(self, until: int) -> Presence:
        def say(offset: int, log: LogPart) -> None:
            self._say("looking for the user", offset, log)

        return presence(self.live, self.line, self.order.without_user, until, say, self.waiting)

    def _is_left_out(self, record: Received) -> bool:
        user = self.order.without_user
        return user != "" and is_of_user(record, self.live.policy.name, user)

    def run(self) -> ReplayReport:
        """Read the part of the log again and compare what comes of it."""
        self.proof.check_beginning(self.log)
        if self.order.without_user and self.start != BASE_VERSION:
            self._check_start()
        place = 0
        learner = self._open(settings_of(self.settings, self.part[0]), seed=True)
        for record in self.log.records():
            while record.offset >= self.part[place].next:
                place += 1
                wanted = settings_of(self.settings, self.part[place])
                if wanted != learner.settings:
                    learner = self._open(wanted)
            self.proof.take(record)
            self.records += 1
            self._say("replaying", record.offset, self.log)
            if self._is_left_out(record):
                self._leave_out(record)
                continue
            self._since_commit.append(record)
            self._take(learner, record)
        self.proof.check_end()
        return self._report(learner)

    def _check_start(self) -> None:
        """Raise SettingsError when the start has learned from the user already."""
        begun = next(link for link in self.line if link.version == self.start).next
        found = self._presence(begun)
        self.certain = found.certain
        if found.first is not None:
            raise SettingsError(
                f"version {self.start[:12]} has read the user's sample at offset {found.first}; "
                "give --from an older one, or leave it out and the nearest that can be is taken"
            )

    def _open(self, settings: Settings, *, seed: bool = False) -> Learner:
        """Start a learner with these settings, where the one before has come to."""
        pulse = Pulse(settings, self.clock, "replay")
        learner = Learner(settings, self.clock, Silence(), pulse, self.means)
        if learner.train.policy.base != self.end.manifest.base:
            raise SettingsError(
                f"policy.model {settings.policy.model} is {learner.train.policy.base}, and the "
                f"versions were learned on {self.end.manifest.base}; name that one in policy.model"
            )
        if seed and self.start != BASE_VERSION:
            self._seed(learner)
        if self.order.without_user:
            learner.intake.served = {link.version: link.manifest.sequence for link in self.line}
        learner.resume()
        for record in self._since_commit:
            if record.offset >= learner.progress.next_offset:
                learner.take(record)
        return learner

    def _seed(self, learner: Learner) -> None:
        """Put the state of the start where a learner looks for its checkpoint, and its version."""
        state = state_of(self.live, self.start)
        if state is None:
            raise UnavailableError(f"the state of {self.start[:12]} was removed; try again")
        root = versions_directory(learner.settings)
        try:
            shutil.copytree(state, checkpoint.place(learner.root, checkpoint.read(state)))
            shutil.copytree(versions_directory(self.live) / self.start, root / self.start)
        except shutil.Error as error:
            _, copy, why = error.args[0][0]
            raise UnavailableError(
                f"{copy} cannot be written ({why}); give --out a directory on a disk with space"
            ) from error
        progress = checkpoint.restore(learner.root, learner.train)
        if progress is None:
            raise UnavailableError(
                f"the state {state} is torn; put it back from a copy, or start from another version"
            )
        learner.progress = progress
        learner.rewind()
        for link in before(self.line, self.start):  # the anchor, or what is in service
            (root / link.version).symlink_to(link.directory.absolute())

    def _take(self, learner: Learner, record: Received) -> None:
        before = learner.progress.next_offset
        learner.take(record)
        if learner.progress.next_offset == before:
            return
        self.made = len(learner.progress.versions)
        while self._since_commit and self._since_commit[0].offset < learner.progress.next_offset:
            self._since_commit.popleft()

    def _leave_out(self, record: Received) -> None:
        sample = sample_of(record)
        assert sample is not None
        self.removed.setdefault(sample.id, record.offset)

    def _say(self, what: str, offset: int, log: LogPart) -> None:
        self.tell(
            Step(what=what, offset=offset, first=log.first, next=log.next, versions=self.made)
        )

    def _report(self, learner: Learner) -> ReplayReport:
        made = learner.progress.names
        root = versions_directory(self.settings)
        versions = tuple(
            remade(
                link, root / made[number] if (number := link.manifest.sequence) in made else None
            )
            for link in self.part
        )
        unlike, why = first_unlike(self.part, versions, root, len(self._control()))
        return ReplayReport(
            policy=self.live.policy.name,
            start=self.start,
            end=self.end.version,
            directory=self.order.directory,
            same=all(version.same for version in versions),
            versions=versions,
            why=why,
            records=self.records,
            unlearned=len(learner.intake.pending),
            looked_up=self.means.looked_up,
            log_begins=self.log.begins,
            removal=self._removal(made, unlike) if self.order.without_user else None,
        )

    def _control(self) -> list[Link]:
        """Return the versions that nobody was left out of: they have to come out as they were."""
        until = min(self.removed.values(), default=self.end.next)
        return [link for link in self.part if link.next <= until]

    def _removal(self, made: dict[int, str], unlike: str) -> Removal:
        outcomes: Counter[str] = Counter()
        versions = []
        for link in self.part:
            fates = [line.outcome for line in link.ledger() if line.sample_id in self.removed]
            outcomes.update(fates)
            versions += [link.version] if fates else []
        newest = max(made, default=0)
        first = [link for link in self.part if link.manifest.sequence == newest]
        return Removal(
            samples=len(self.removed),
            outcomes=dict(outcomes.most_common()),
            versions=tuple(versions),
            first_offset=min(self.removed.values(), default=None),
            newest=newest,
            certain=self.certain,
            moved=self._moved(first[0], made[newest]) if first else None,
            control=len(self._control()),
            unlike=unlike,
        )

    def _moved(self, link: Link, version: str) -> float:
        now = load_file(versions_directory(self.settings) / version / ADAPTER_WEIGHTS)
        then = load_file(link.directory / ADAPTER_WEIGHTS)
        apart = sum(float((now[n].double() - then[n].double()).square().sum()) for n in then)
        whole = sum(float(value.double().square().sum()) for value in then.values())
        return math.sqrt(apart / whole)


def _own_place(settings: Settings, directory: Path) -> Settings:
    """Return the settings with a state directory of the replay's own and a key nobody else trusts.

    What is trusted, a reward model's signature, is what the live learner trusts. SettingsError when
    something lies there.
    """
    if directory.exists() and any(directory.iterdir()):
        raise SettingsError(f"{directory} is not empty; give --out a directory that is new")
    directory = directory.absolute()
    private = directory / "secrets" / "replay.pem"
    make_signing_key(private, directory / "keys" / "replay.pub")
    return replace(
        settings,
        state_dir=directory,
        policy=replace(
            settings.policy,
            trusted_keys=(settings.state_dir / settings.policy.trusted_keys).absolute(),
        ),
        learner=replace(settings.learner, signing_key_file=str(private)),
    )


def rebuild(
    settings: Settings,
    order: ReplayOrder,
    clock: Clock,
    stored_means: RewardMeans,
    tell: Tell,
    waiting: Waiting = nullcontext,
) -> ReplayReport:
    """Do what the order says and return what was found; ``waiting``, while the log is waited for.

    SettingsError for an order that cannot be done, ManifestError for files that are not what was
    signed, UnavailableError for a log that has not what is needed.
    """
    threads = torch.get_num_threads()
    try:
        with writing(Path(order.directory)):
            return Rebuild(settings, order, clock, stored_means, tell, waiting).run()
    finally:
        torch.set_num_threads(threads)
