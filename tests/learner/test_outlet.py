"""What the learner has to say waits for a broker, and not for ever."""

from __future__ import annotations

import socket
from threading import Event

import pytest

from contracts.clock import ManualClock
from contracts.errors import DeadlineError
from contracts.ids import NewId
from contracts.settings import Kafka
from learner.outlet import WAIT_SECONDS, Outlet


class _Hurrying(ManualClock):
    """A clock on which each look takes half of the wait."""

    def monotonic(self) -> float:
        self.advance(WAIT_SECONDS / 2.0)
        return super().monotonic()


def test_a_broker_that_never_comes_ends_the_wait_and_is_named(new_id: NewId) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        bootstrap = f"127.0.0.1:{taken.getsockname()[1]}"
        clock = _Hurrying()
        outlet = Outlet(Kafka(bootstrap=bootstrap), clock, new_id, Event())
        with pytest.raises(DeadlineError, match=f"{bootstrap} did not take .* start the learner"):
            outlet.audit("learner.started", "assistant", {})
        outlet.close()
    assert clock.monotonic() >= 2.0 * WAIT_SECONDS
