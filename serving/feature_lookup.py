"""The user's features at request time; a store that is missing or fails costs no request.

The store's client is slow to import and to open, so a thread does both and tries again until it
succeeds. Reading blocks all requests, so a store that fails is asked for `FAILING_SHARE` of the
time at most: one that hangs until its deadline would else stop the gateway.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from datetime import datetime
from threading import Event as Flag
from threading import Thread
from typing import Protocol

from contracts.clock import Clock
from contracts.events import FeatureValue
from contracts.settings import Settings

RETRY_SECONDS = 5.0
LOGGED_FAILURES = 5
FAILING_SHARE = 0.05
"""Of the time, how much may be spent in vain on a store that fails."""

log = logging.getLogger("headrace.features")


class Reader(Protocol):
    """What `feature_store.reader.OnlineReader` offers."""

    def read(
        self, user_id: str, session_id: str, policy_version: str, now: datetime, topic: str = ""
    ) -> dict[str, FeatureValue]:
        """Return feature name to value."""
        ...


def open_online_reader(settings: Settings) -> Reader:
    """Open the online store."""
    from feature_store.reader import OnlineReader

    reader: Reader = OnlineReader(settings)
    return reader


class FeatureLookup:
    """Reads features once the store is open; before that, and on failure, there are none."""

    def __init__(
        self, settings: Settings, open_reader: Callable[[Settings], Reader], clock: Clock
    ) -> None:
        self.note = "opening the feature store"
        self._settings = settings
        self._clock = clock
        self._ask_from = -math.inf
        self._open_reader = open_reader
        self._reader: Reader | None = None
        self._failures = 0
        self._stopping = Flag()
        self._thread = Thread(target=self._open, name="feature-store", daemon=True)

    def start(self) -> None:
        """Begin opening the store."""
        self._thread.start()

    def stop(self) -> None:
        """Stop trying to open it."""
        self._stopping.set()

    def read(
        self, user_id: str, session_id: str, policy_version: str, now: datetime, topic: str = ""
    ) -> dict[str, FeatureValue] | None:
        """Return the features, None when the store cannot give them now."""
        began = self._clock.monotonic()
        if self._reader is None or began < self._ask_from:
            return None
        try:
            return self._reader.read(user_id, session_id, policy_version, now, topic)
        except Exception as error:  # noqa: BLE001 - edge of the process: no failure of the store may fail a request
            ended = self._clock.monotonic()
            self._ask_from = ended + (ended - began) * (1.0 / FAILING_SHARE - 1.0)
            self._failures += 1
            self.note = f"feature store: {type(error).__name__}: {error}"
            if self._failures <= LOGGED_FAILURES:
                log.warning("%s; answering without features", self.note)
            return None

    def _open(self) -> None:
        while not self._stopping.is_set():
            try:
                self._reader = self._open_reader(self._settings)
            except Exception as error:  # noqa: BLE001 - edge of the thread: any failure is an outage to wait out
                note = f"feature store: {type(error).__name__}: {error}"
                if note != self.note:
                    log.warning("%s; answering without features", note)
                self.note = note
            else:
                self.note = ""
                return
            self._stopping.wait(RETRY_SECONDS)
