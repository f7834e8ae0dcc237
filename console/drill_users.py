"""Simulated users that ask in a steady stream while a drill runs, as a process of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from console.child_environment import inherited_environment, public_settings
from contracts.errors import UnavailableError
from contracts.settings import Settings

ENDLESS = 10_000_000
STOP_SECONDS = 10.0


class Load(Struct, frozen=True, kw_only=True):
    """Who asks: a ``population`` of users of a product, so many questions a second."""

    product: str
    population: int
    rate: float
    seed: int


class _Line(Struct, frozen=True, kw_only=True):
    """What of a line of the truth file counts here."""

    decision_id: str
    user: str
    failed: bool
    error: str = ""


class Users:
    """The running users and what they have met with so far."""

    def __init__(self, process: subprocess.Popen[bytes], truth: Path, log: Path) -> None:
        self._process = process
        self._truth = truth
        self._log = log
        self._decoder = msgspec.json.Decoder(_Line)

    def check(self) -> None:
        """Raise UnavailableError when they ended by themselves."""
        if self._process.poll() is not None:
            raise UnavailableError(
                f"the simulated users ended with code {self._process.returncode}; see {self._log}"
            )

    def lines(self) -> list[_Line]:
        """Return what came of every question that was asked to its end."""
        try:
            text = self._truth.read_bytes()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be half written
        return [self._decoder.decode(line) for line in whole.splitlines()]

    def stop(self) -> None:
        """End them; questions under way are abandoned and count as nothing."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def users_at_work(settings: Settings, load: Load, directory: Path) -> Iterator[Users]:
    """Let users ask at the gateway for as long as the block runs; files go to ``directory``."""
    truth, log = directory / "truth.jsonl", directory / "users.log"
    command = [
        *(sys.executable, "-m", "simulator", "run", "--users", load.product),
        *("--interactions", str(ENDLESS), "--rate", str(load.rate), "--seed", str(load.seed)),
        *("--population", str(load.population), "--data", str(settings.data_dir)),
        *("--gateway", f"http://{settings.gateway.host}:{settings.gateway.port}"),
        *("--model", settings.policy.name, "--truth", str(truth)),
    ]
    directory.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=inherited_environment() | public_settings(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    users = Users(process, truth, log)
    try:
        yield users
    finally:
        users.stop()
