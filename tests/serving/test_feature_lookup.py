"""A feature store that fails costs a request its features, and the gateway next to nothing."""

from __future__ import annotations

from datetime import datetime

import pytest

from contracts.clock import ManualClock
from contracts.events import FeatureValue
from contracts.settings import Settings
from serving.feature_lookup import FAILING_SHARE, FeatureLookup
from tests.until import until

FOUND = {"user.mood": FeatureValue(value=0.5, age_seconds=2.0)}


class HangingStore:
    """A store that answers, or fails after ``seconds`` of the clock when it ``hangs``."""

    def __init__(self, clock: ManualClock, seconds: float) -> None:
        self.hangs = False
        self.asked = 0
        self._clock = clock
        self._seconds = seconds

    def read(
        self, user_id: str, session_id: str, policy_version: str, now: datetime, topic: str = ""
    ) -> dict[str, FeatureValue]:
        self.asked += 1
        if self.hangs:
            self._clock.advance(self._seconds)
            raise OSError("no answer in time")
        return FOUND


@pytest.mark.parametrize("seconds", [0.05, 0.0002], ids=["hangs", "refuses"])
def test_a_store_that_fails_is_asked_for_a_small_share_of_the_time(
    clock: ManualClock, seconds: float
) -> None:
    store = HangingStore(clock, seconds)
    lookup = FeatureLookup(Settings(), lambda _: store, clock)
    lookup.start()

    def read() -> dict[str, FeatureValue] | None:
        return lookup.read("u", "s", "base", clock.now())

    until("an open store", lambda: read() == FOUND)
    store.hangs, store.asked, began = True, 0, clock.monotonic()
    while clock.monotonic() - began < 10.0:
        assert read() is None
        clock.advance(0.001)
    spent = store.asked * seconds / (clock.monotonic() - began)
    assert 0.0 < spent <= FAILING_SHARE * 1.1
    store.hangs = False
    clock.advance(seconds / FAILING_SHARE)
    assert read() == FOUND
    lookup.stop()
