"""Following the rollout state: the newest one known, at hand for every request.

The state comes from the compacted topic `rollouts`; the last good one is kept in a file, so that a
gateway starts with the broker down. It knows nothing of how the state comes about.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from threading import Event, Thread

import msgspec
from kafka.errors import KafkaError

from contracts.broker import Reader, Received, wait_for_broker
from contracts.codec import to_json
from contracts.errors import CodecError, HeadraceError
from contracts.events import Rollout
from contracts.settings import Kafka
from contracts.topics import ROLLOUTS
from serving.rollout_lease import Lease, withdrawn

POLL_SECONDS = 0.25
PAUSE_SECONDS = 0.25  # a fetch costs the CPU of a request, and delays a roll-back by no more
PROBE_SECONDS = 1.0
RETRY_SECONDS = 0.5
STOP_SECONDS = 5.0

_log = logging.getLogger("headrace.rollout_state")


def newer(known: Rollout | None, read: Rollout) -> Rollout:
    """Return the state that holds, given the records of the topic in their order.

    The higher term holds, and the first record of a term decides whose it is: what another
    controller writes in it, or in a lower one, is void. Within a term the higher epoch holds, among
    equals the one read later.
    """
    if known is None or read.term > known.term:
        return read
    same = (read.term, read.writer) == (known.term, known.writer)
    return read if same and read.epoch >= known.epoch else known


class RolloutFollower:
    """Follows one policy's rollout state in a thread; ``current`` never blocks.

    ``fresh`` tells whether the topic was read to its end since the broker was last lost. While the
    ``lease`` is over, no candidate is shown.
    """

    def __init__(
        self, kafka: Kafka, policy: str, client_id: str, cache_path: Path, lease: Lease
    ) -> None:
        self._kafka = kafka
        self._lease = lease
        self._policy = policy
        self._client_id = client_id
        self._cache_path = cache_path
        self._current: Rollout | None = None
        self._from_topic: Rollout | None = None
        self.fresh = False
        self._stopping = Event()
        self._thread = Thread(target=self._follow, name="rollout-follower", daemon=True)

    @property
    def current(self) -> Rollout | None:
        """The newest state known, None when there never was one."""
        state = self._current
        return withdrawn(state) if state and self._lease.over(state) else state

    @property
    def note(self) -> str:
        """Why the newest state is not followed to the letter, "" when it is."""
        state = self._current
        if state is None or state.candidate is None or not self._lease.over(state):
            return ""
        return (
            f"no word of the rollout controller for {self._lease.seconds:.0f} s: canary "
            f"{state.candidate.version[:12]} of {self._policy} is withdrawn until it is back"
        )

    def start(self) -> RolloutFollower:
        """Take the cached state, if any, and begin to follow."""
        self._current = read_cache(self._cache_path, self._policy)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                wait_for_broker(self._kafka, PROBE_SECONDS)
                reader = Reader(
                    self._kafka, (ROLLOUTS,), self._client_id, pause_seconds=PAUSE_SECONDS
                )
            except Exception as error:  # noqa: BLE001 - edge of the thread: without it no roll-back would be heard of
                _tell(error, "going on with the last one")
                self._stopping.wait(RETRY_SECONDS)
                continue
            try:
                self._read(reader)
            except Exception as error:  # noqa: BLE001 - edge of the thread, as above
                _tell(error, "connecting again")
                self._stopping.wait(RETRY_SECONDS)
            finally:
                self.fresh = False
                reader.close()

    def _read(self, reader: Reader) -> None:
        """Read to the end before anything is shown, so that no request sees an old state again.

        From then on the topic decides, even if its epoch is below that of the cache: a cache may
        outlive the broker it came from.
        """
        ends = reader.ends()
        caught_up = False
        while not self._stopping.is_set():
            for record in reader.poll(POLL_SECONDS):
                self._consider(record)
            caught_up = caught_up or all(
                at >= ends[place] for place, at in reader.positions().items()
            )
            if caught_up and self._from_topic is not None:
                self._show(self._from_topic)
            self.fresh = caught_up

    def _consider(self, record: Received) -> None:
        try:
            event = record.event()
        except CodecError as error:
            _log.warning("rollouts/%s offset %s: %s", record.partition, record.offset, error)
            return
        if isinstance(event, Rollout) and event.policy == self._policy:
            self._from_topic = newer(self._from_topic, event)
            if self._from_topic is event:  # what a controller without the term writes is no sign
                self._lease.heard()

    def _show(self, state: Rollout) -> None:
        known, self._current = self._current, state
        if known is not None and (known.epoch, known.rollout_id) == (state.epoch, state.rollout_id):
            return
        try:
            write_cache(self._cache_path, state)
        except OSError as error:
            _log.warning("rollout state: cannot write %s: %s", self._cache_path, error)


def _tell(error: Exception, then: str) -> None:
    """Log what went wrong, with its trace where it is a fault and no outage."""
    expected = isinstance(error, KafkaError | HeadraceError | OSError)
    _log.warning("rollout state: %s; %s", str(error) or repr(error), then, exc_info=not expected)


def write_cache(path: Path, state: Rollout) -> None:
    """Replace the cached state as one whole, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(to_json(state))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_cache(path: Path, policy: str) -> Rollout | None:
    """Return the cached state of a policy; None when there is none or it cannot be read."""
    try:
        state = msgspec.json.decode(path.read_bytes(), type=Rollout)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        _log.warning("rollout state: %s is of no use: %s", path, error)
        return None
    return state if state.policy == policy else None
