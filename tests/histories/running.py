"""Broker, workers and gateway of one test, and a round: a history sent while things happen."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from console.child import Child
from console.local_broker import free_port
from console.programs import broker_program
from contracts.clock import SystemClock
from contracts.events import Decision, Feedback
from contracts.settings import Gateway, Kafka, Quarantine, Settings
from feature_store.writer import FeatureWriter
from tests.histories import accounts
from tests.histories.disturbances import Disturbance, Target
from tests.histories.gateway_client import GatewayClient
from tests.histories.history import RULES, SECRET, present
from tests.histories.replay import Replay
from tests.histories.workers import Workers
from tests.until import until

EVENT_SECONDS = 0.04
OUTBOX_BYTES = 256 << 10
TRUSTING = Quarantine(max_feedback=1_000_000)
"""The brakes count what one process has read since it began: a replay counts otherwise."""


class Running:
    """The running parts, and what was sent so far."""

    def __init__(self, folder: Path, partitions: int) -> None:
        self.folder, self.start = folder, present()
        address = f"127.0.0.1:{free_port()}"
        kafka = Kafka(bootstrap=address, prefix="live-", partitions=partitions)
        self.settings = Settings(
            state_dir=folder / "state",
            kafka=kafka,
            streams=replace(RULES, quarantine=TRUSTING),
            gateway=Gateway(feedback_secret=SECRET, outbox_max_bytes=OUTBOX_BYTES),
        )
        self.broker = Child(broker_program(self.settings), folder / "logs")
        self.gateway = GatewayClient(self.settings, folder / "gateway.log")
        self.workers = Workers(self.settings, folder / "logs")
        self.happened: Counter[str] = Counter()
        self.sent = self._replays = 0

    def begin(self) -> None:
        """Start broker, gateway and one worker."""
        self.broker.start()
        until("the broker", lambda: not self.broker.check_ready(), 30.0)
        self.broker.program.after_ready()
        self.gateway.start()
        self.workers.join()
        self.store = FeatureWriter(self.settings, SystemClock(), "test")

    def send(
        self,
        rng: random.Random,
        events: Sequence[Decision | Feedback],
        plan: Sequence[Disturbance],
    ) -> None:
        """Send events one by one, evenly in time, while the disturbances happen."""
        target = Target(self.broker, self.workers, self.gateway)
        begun: list[Disturbance] = []
        refused: list[Feedback] = []
        due = time.monotonic()
        for number, event in enumerate(events):
            for what in [one for one in begun if one.end <= number]:
                target.end(what)
                begun.remove(what)
            for what in (one for one in plan if one.at == number):
                if target.begin(what):
                    self.happened[what.kind] += 1
                    begun.append(what)
            for what in begun:
                target.go_on(what, number)
            self.workers.tend()
            due = max(due + EVENT_SECONDS, time.monotonic())
            until("the time of the next event", lambda: time.monotonic() >= due, 30.0)  # noqa: B023 - called here
            self.sent += 1
            if not self.gateway.send(event) and isinstance(event, Feedback):
                refused.append(event)
        for what in begun:
            target.end(what)
        for event in refused:  # a sender that was refused tries again, or gives up
            if rng.random() < 0.5:
                self.sent += 1
                self.gateway.send(event)

    def rest(self, *, claimed: bool = False) -> accounts.Accounts:
        """Wait until all that was sent is worked off, and return what the log then holds.

        ``claimed``: what waits for a decision that never came is waited for too.
        """
        self.workers.until(
            "all acknowledged events delivered", lambda: self.gateway.status().undelivered == 0
        )
        waiting = self.read().waiting()
        self.workers.until("the log at rest", lambda: self.workers.at_rest(waiting))
        if claimed:
            self.workers.until("unclaimed feedback let go of", lambda: not self.read().unclaimed())
            self.workers.until("the log at rest", lambda: self.workers.at_rest({}))
        return self.read()

    def read(self) -> accounts.Accounts:
        """Return what the log holds now."""
        return accounts.read(self.settings.kafka, self.settings.streams, SECRET, self.start)

    def differences(self, found: accounts.Accounts) -> list[str]:
        """Return everything in log and store that is not as the raw log says it must be."""
        wanted = accounts.wanted_features(found)
        return [
            *accounts.differences(found, self.gateway.acknowledged),
            *accounts.feature_differences(self.store, wanted),
        ]

    def replay(self) -> Replay:
        """Return a fresh worker for the same log, not started yet."""
        self._replays += 1
        return Replay(self.settings, self.folder / f"replay-{self._replays}")

    def replay_differences(self, found: accounts.Accounts, replay: Replay) -> list[str]:
        """Return what the fresh worker makes otherwise of the same raw log."""
        replay.run(found.waiting(ever=True))
        kafka = replay.settings.kafka
        again = accounts.read(kafka, replay.settings.streams, SECRET, self.start)
        store = FeatureWriter(replay.settings, SystemClock(), "test")
        wanted = accounts.wanted_features(found)
        return [
            *accounts.replay_differences(found, again),
            *(f"replayed {one}" for one in accounts.feature_differences(store, wanted)),
        ]

    def close(self) -> None:
        """End everything."""
        self.gateway.close()
        self.workers.close()
        self.broker.stop()


@contextmanager
def running(folder: Path, partitions: int = 4) -> Iterator[Running]:
    """Give the running parts and end them."""
    parts = Running(folder, partitions)
    try:
        parts.begin()
        yield parts
    finally:
        parts.close()
