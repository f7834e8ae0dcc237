"""Stream workers as the local stack runs them: started, killed, stopped, started anew when dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from console.child import Child
from console.child_environment import FEEDBACK_SECRET, with_secrets
from console.programs import streams_program
from contracts.broker import Reader
from contracts.clock import SystemClock
from contracts.errors import HeadraceError
from contracts.heartbeat import Heartbeat, read_heartbeat
from contracts.settings import Settings
from contracts.topics import AUDIT, DEAD_LETTERS, DECISIONS, FEEDBACK, REWARDS, SAMPLES
from tests.until import until

DEADLINE_SECONDS = 150.0
QUIET_SECONDS = 1.0
WRITTEN = (REWARDS, SAMPLES, AUDIT, DEAD_LETTERS)


class Workers:
    """The members of one consumer group, by number; ``died`` are those that ended by themselves.

    One that finds no broker while it starts ends, as it should: the supervisor starts it again.
    """

    def __init__(self, settings: Settings, logs: Path) -> None:
        self.settings, self._logs = settings, logs
        self.members: dict[int, Child] = {}
        self.died: list[str] = []
        self._killed: set[int] = set()
        self._began: set[int] = set()
        self._ends: Reader | None = None
        self._quiet = (0.0, {"": 0})

    def join(self) -> int:
        """Start one more worker and return its number."""
        number = next(n for n in range(1, 10) if n not in self.members)
        environment = with_secrets(self.settings, FEEDBACK_SECRET) | {"OMP_NUM_THREADS": "1"}
        child = Child(streams_program(self.settings, environment, number, ()), self._logs)
        self.members[number] = child
        self._killed.add(number)
        self.tend()
        return number

    def kill(self, number: int) -> None:
        """End a worker as a crash does; it starts again as by the stack's supervisor."""
        child = self.members[number]
        self._killed.add(number)
        if child.exit_code() is None:
            os.kill(child.pid, signal.SIGKILL)
            until("the end of a killed worker", lambda: child.exit_code() is not None)

    def leave(self, number: int) -> None:
        """End a worker cleanly, for good, once it is a member and has something to leave."""
        self.signal(number, signal.SIGCONT)
        self.until(f"streams-{number} to be a member", lambda: self._is_member(number))
        child = self.members.pop(number)
        self._killed.discard(number)
        if child.exit_code() is None and not (child.stop() and child.exit_code() == 0):
            self.died.append(f"streams-{number} did not leave cleanly: {child.last_lines(3)}")
        child.program.before_start()  # whoever ends a worker removes what it left of the group

    def _is_member(self, number: int) -> bool:
        beat = self._heartbeat(number)
        return beat is not None and beat.ready and beat.pid == self.members[number].pid

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send SIGSTOP or SIGCONT to a worker, if it runs."""
        child = self.members.get(number)
        if child is not None and child.exit_code() is None:
            os.kill(child.pid, what)

    def tend(self) -> None:
        """Start what is dead, as the supervisor does, once the broker answers."""
        for number, child in self.members.items():
            if child.exit_code() is None:
                if self._is_member(number):
                    self._began.add(child.pid)
                continue
            if number not in self._killed and child.pid in self._began:
                self.died.append(f"streams-{number} died: {child.last_lines(3)}")
                self._killed.add(number)
            try:
                child.start()
            except (HeadraceError, OSError):
                continue
            self._killed.discard(number)

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition while dead workers are started again."""

        def reached() -> bool:
            self.tend()
            return condition()

        until(what, reached, DEADLINE_SECONDS, state=self.state)

    def state(self) -> str:
        """Return what there is to say of the workers when a wait has failed."""
        lines = [f"{number}: {self._heartbeat(number)}" for number in self.members]
        lines += [child.last_lines(15) for child in self.members.values()]
        return "\n".join([*lines, *self.died])

    def decisions(self) -> dict[int, int]:
        """Return how many decisions each member has read since it began, by its heartbeat."""
        beats = {number: self._heartbeat(number) for number in self.members}
        return {
            number: beat.counts["decisions"]
            for number, beat in beats.items()
            if beat is not None and beat.pid == self.members[number].pid
        }

    def at_rest(self, waiting: dict[str, int]) -> bool:
        """Say whether all is read, closed, written and committed, and nothing more comes.

        ``waiting`` are, by partition of the feedback, the offsets of feedback that waits for a
        decision: the group may not commit beyond them.
        """
        now = SystemClock().now()
        try:
            ends, committed = self._log_ends(), self._committed()
        except (KafkaError, HeadraceError):
            return False
        if ends != self._quiet[1]:
            self._quiet = (time.monotonic(), ends)
        read = (DECISIONS.name, FEEDBACK.name)
        behind = {
            place
            for place, end in ends.items()
            if place.partition("/")[0] in read
            and committed.get(place, 0) < min(end, waiting.get(place, end))
        }
        quiet = time.monotonic() - self._quiet[0] > QUIET_SECONDS
        beats = [self._heartbeat(number) for number in self.members]
        return (
            not behind
            and quiet
            and all(
                beat is not None
                and beat.pid == child.pid
                and beat.age_seconds(now) < 2 * QUIET_SECONDS
                and beat.ready
                and (beat.lag, beat.counts["open"], beat.note) == (0, 0, "")
                for beat, child in zip(beats, self.members.values(), strict=True)
            )
        )

    def close(self) -> None:
        """End all workers, each cleanly."""
        if self._ends is not None:
            self._ends.close()
        for number in list(self.members):
            child = self.members.pop(number)
            if child.exit_code() is None:
                os.kill(child.pid, signal.SIGCONT)
            child.stop()

    def _heartbeat(self, number: int) -> Heartbeat | None:
        return read_heartbeat(self.settings.state_dir, f"streams-{number}")

    def _log_ends(self) -> dict[str, int]:
        if self._ends is None:
            topics = (DECISIONS, FEEDBACK, *WRITTEN)
            self._ends = Reader(self.settings.kafka, topics, "test-ends", from_end=True)
        return self._ends.ends()

    def _committed(self) -> dict[str, int]:
        prefix = self.settings.kafka.prefix
        admin = KafkaAdminClient(
            bootstrap_servers=self.settings.kafka.bootstrap, client_id="test-offsets"
        )
        try:
            found = admin.list_group_offsets(f"{prefix}streams")[f"{prefix}streams"]
        finally:
            admin.close()
        return {
            f"{place.topic.removeprefix(prefix)}/{place.partition}": committed.offset
            for place, committed in found.items()
        }
