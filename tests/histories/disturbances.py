"""What happens to the processes while a history is sent: drawn from the round's seed."""

from __future__ import annotations

import random
import signal
from typing import Literal

from msgspec import Struct

from console.child import Child
from tests.histories.gateway_client import GatewayClient
from tests.histories.workers import Workers
from tests.until import until

Kind = Literal["kill", "pause", "slow", "join", "leave", "broker", "gateway", "disk"]
KINDS: tuple[Kind, ...] = ("kill", "pause", "slow", "join", "leave", "broker", "gateway", "disk")
MAX_WORKERS = 3


class Disturbance(Struct, frozen=True):
    """From before the event number ``at`` until before the event number ``end``.

    ``choice`` in [0, 1) says to which worker it happens, or how full the disk is.
    """

    kind: Kind
    at: int
    end: int
    choice: float

    def __str__(self) -> str:
        return f"{self.kind}[{self.at}:{self.end}]@{self.choice:.2f}"


def draw(rng: random.Random, events: int) -> list[Disturbance]:
    """Return one to four disturbances of a round with so many events."""
    found = []
    for kind in rng.choices(KINDS, k=rng.randint(1, 4)):
        at = rng.randrange(events)
        end = min(events, at + rng.randint(5, 30))
        found.append(Disturbance(kind, at, end, rng.random()))
    return sorted(found, key=lambda one: one.at)


class Target:
    """The running parts that disturbances happen to; what cannot happen now is left out."""

    def __init__(self, broker: Child, workers: Workers, gateway: GatewayClient) -> None:
        self.broker, self.workers, self.gateway = broker, workers, gateway
        self._stopped: dict[Disturbance, int] = {}
        self.is_up = True

    def begin(self, what: Disturbance) -> bool:
        """Let it happen; return whether it could."""
        number = self._worker(what)
        match what.kind:
            case "kill":
                self.workers.kill(number)
            case "pause" | "slow":
                self._stopped[what] = number
                self.workers.signal(number, signal.SIGSTOP)
            case "join" if len(self.workers.members) < MAX_WORKERS and self.is_up:
                self.workers.join()
            case "leave" if len(self.workers.members) > 1 and self.is_up:
                self.workers.leave(number)
            case "broker" if self.is_up:
                self.is_up = False
                self.broker.stop()
            case "gateway":
                self.gateway.kill()
            case "disk":
                self.gateway.fill_disk(None if what.choice < 0.3 else int(what.choice * 4000))
            case _:
                return False
        return True

    def go_on(self, what: Disturbance, number: int) -> None:
        """Do what it does while it lasts, before event ``number``: a slow worker runs in bursts."""
        if what.kind == "slow" and what in self._stopped:
            now_and_then = signal.SIGCONT if number % 4 == 0 else signal.SIGSTOP
            self.workers.signal(self._stopped[what], now_and_then)

    def end(self, what: Disturbance) -> None:
        """Undo what lasts."""
        if what in self._stopped:
            self.workers.signal(self._stopped.pop(what), signal.SIGCONT)
        elif what.kind == "disk":
            self.gateway.free_disk()
        elif what.kind == "broker" and not self.is_up:
            self.broker.start()
            until("the broker is back", lambda: not self.broker.check_ready(), 30.0)
            self.is_up = True

    def _worker(self, what: Disturbance) -> int:
        numbers = sorted(self.workers.members)
        return numbers[int(what.choice * len(numbers))]
