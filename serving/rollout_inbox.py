"""What waits for the rollout controller: the newest release, and people's commands in their order.

Both are kept as places on their topics: what was not done yet is read again after a restart.
"""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from contracts.broker import Received
from contracts.codec import trace_headers
from contracts.events import Candidate, Release, Rollout, RolloutCommand
from contracts.topics import RELEASES, ROLLOUT_COMMANDS

RELEASES_PLACE = f"{RELEASES.name}/0"
COMMANDS_PLACE = f"{ROLLOUT_COMMANDS.name}/0"
MAX_COMMANDS = 100
"""So many commands may wait here; the others wait on their topic."""


class Pending(Struct, frozen=True):
    """A release that waits for its turn, its place on the topic and its trace."""

    release: Release
    offset: int
    trace: dict[str, str]

    @property
    def candidate(self) -> Candidate:
        """The version that it announces."""
        release = self.release
        return Candidate(
            version=release.version,
            sequence=release.sequence,
            location=release.location,
            form=release.form,
        )


class Asked(Struct, frozen=True):
    """A command, its place on the topic and its trace."""

    command: RolloutCommand
    offset: int
    trace: dict[str, str]


class Inbox:
    """Keeps one policy's newest release and its commands until they are done."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._commands: deque[Asked] = deque()
        self.release: Pending | None = None
        self.superseded: deque[tuple[Release, str]] = deque()

    @property
    def command(self) -> Asked | None:
        """The command to be done first, None when none waits."""
        return self._commands[0] if self._commands else None

    @property
    def waiting(self) -> int:
        """How many commands wait."""
        return len(self._commands)

    @property
    def overtaken(self) -> bool:
        """Whether another command waits behind the first one."""
        return self.waiting > 1

    def put_release(self, record: Received, release: Release, state: Rollout) -> bool:
        """Keep a release unless it is known; a newer one supersedes. Return whether it is kept."""
        known = {state.judged, state.stable.version}
        if state.candidate is not None:
            known.add(state.candidate.version)
        if release.policy != self._policy or release.version in known:
            return False
        if self.release is not None:
            if self.release.release.version == release.version:
                return False
            self.superseded.append((self.release.release, release.version))
        self.release = Pending(release, record.offset, trace_headers(record.headers))
        return True

    def put_command(self, record: Received, command: RolloutCommand, state: Rollout) -> bool:
        """Keep a command for this policy, unless it waits already or was the last one done.

        Return False when there is no room: it and those behind it must be read again later.
        """
        known = {asked.command.id for asked in self._commands}
        if state.last_command is not None:
            known.add(state.last_command.command_id)
        if command.policy != self._policy or command.id in known:
            return True
        if self.waiting >= MAX_COMMANDS:
            return False
        self._commands.append(Asked(command, record.offset, trace_headers(record.headers)))
        return True

    def drop(self, done: Pending | Asked, state: Rollout) -> None:
        """Forget what was done, and a release that a person had served meanwhile."""
        if isinstance(done, Asked):
            self._commands.popleft()
        elif self.release is done:
            self.release = None
        if self.release and self.release.release.version in (state.judged, state.stable.version):
            self.release = None

    def places(self, read: dict[str, int], done: Pending | Asked | None = None) -> dict[str, int]:
        """Return where to read on after ``read`` once ``done``, if any, is done."""
        places = dict(read)
        if self.release is not None and self.release is not done:
            places[RELEASES_PLACE] = self.release.offset
        waiting = [asked for asked in self._commands if asked is not done]
        if waiting:
            places[COMMANDS_PLACE] = waiting[0].offset
        return places
