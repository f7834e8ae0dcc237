"""Forks learners, `python -m learner` with everything imported, so that a life begins at once.

Each line on stdin is an `Order` in JSON and gets a line on stdout: the pid of a new life, or the
exit code of one that ended. The end of stdin ends the lives, too. Nothing here runs torch
or opens a thread before it forks.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread
from traceback import print_exc
from typing import Literal

import msgspec
from msgspec import Struct

from learner.directory import CrashPoint

IMPORTED = (
    "learner.loop",
    "learner.user_features",
    "contracts.tracing",
    "feature_store.history",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "peft.tuners.lora",
)


class Suicide(Struct, frozen=True, kw_only=True):
    """SIGKILL at the ``call``-th crash point that is reached (counted from 1, of those named
    ``point`` if that is given), ``seconds`` later."""

    call: int
    point: str = ""
    seconds: float = 0.0


class Order(Struct, frozen=True, kw_only=True):
    """Start a life, or say how life ``pid`` ended: None while it goes on, unless ``block``."""

    kind: Literal["start", "ended"]
    environment: dict[str, str] = {}
    log: str = ""
    suicide: Suicide | None = None
    pid: int = 0
    block: bool = False


def live(order: Order) -> None:
    """Be a learner until the end; never returns."""
    status = 70
    try:
        _attach(Path(order.log))
        os.environ.update(order.environment)
        from learner import __main__, loop

        if order.suicide is not None:
            loop.run = partial(loop.run, crash_point=_killing(order.suicide, Path(order.log)))
        status = __main__.main([])
    except BaseException:  # noqa: BLE001 - edge of the process: the log says why it ended
        print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _attach(log: Path) -> None:
    """Let go of the nursery's pipes: output goes to the end of the log."""
    for number in (0, 1, 2):
        target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if number else None
        source = target if target is not None else os.open(os.devnull, os.O_RDONLY)
        os.dup2(source, number)
        os.close(source)


def _killing(suicide: Suicide, log: Path) -> CrashPoint:
    """Return the crash point that ends this process without a word."""
    left = [suicide.call]

    def crash_point(name: str) -> None:
        if suicide.point in ("", name):
            left[0] -= 1
        if left[0] == 0 and suicide.point in ("", name):
            with log.open("a") as file:
                file.write(f"killed at {name}, {1000 * suicide.seconds:.1f} ms later\n")
            if suicide.seconds == 0.0:
                os.kill(os.getpid(), signal.SIGKILL)
            Thread(target=_die_later, args=(suicide.seconds,), daemon=True).start()

    return crash_point


def _die_later(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def answer(order: Order, lives: set[int]) -> int | None:
    """Do what an order says."""
    if order.kind == "start":
        pid = os.fork()
        if pid == 0:
            live(order)
        lives.add(pid)
        return pid
    pid, status = os.waitpid(order.pid, 0 if order.block else os.WNOHANG)
    lives.discard(pid)
    return os.waitstatus_to_exitcode(status) if pid else None


def main() -> None:
    """Serve orders until stdin ends."""
    for name in IMPORTED:
        import_module(name)
    lives: set[int] = set()
    print("null", flush=True)
    for line in sys.stdin:
        print(msgspec.json.encode(answer(msgspec.json.decode(line, type=Order), lives)).decode())
        sys.stdout.flush()
    for pid in lives:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
