"""The test's side of the `gateway` process: sends events, kills it, takes its disk away."""

from __future__ import annotations

import os
import resource
import select
import subprocess
import sys
from pathlib import Path

import msgspec

from console.child_environment import FEEDBACK_SECRET, inherited_environment, with_secrets
from contracts.events import Decision, Feedback
from contracts.settings import Settings
from tests.histories.gateway import Answered

ANSWER_SECONDS = 30.0


class GatewayClient:
    """A running gateway process and what it acknowledged, ids in order."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings, self._log = settings, log
        self._process: subprocess.Popen[bytes] | None = None
        self.acknowledged: dict[str, None] = {}
        self.refused = 0

    def start(self) -> None:
        """Start the process, or start it anew."""
        environment = inherited_environment() | with_secrets(self._settings, FEEDBACK_SECRET)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.histories.gateway"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
            )

    def send(self, event: Decision | Feedback) -> bool:
        """Ask for an event to be kept; return whether that was acknowledged."""
        kind = "decision" if isinstance(event, Decision) else "feedback"
        kept = self._ask({"kind": kind, "event": event}).acknowledged
        if kept:
            self.acknowledged[event.id] = None
        else:
            self.refused += 1
        return kept

    def status(self) -> Answered:
        """Return how the outbox fares."""
        return self._ask({"kind": "status"})

    def kill(self) -> None:
        """End it between two requests as a crash does, and start it anew."""
        process = self._running()
        process.kill()
        self._close(process)
        self.start()

    def fill_disk(self, left: int | None) -> None:
        """Let no file grow beyond its segment's present size plus ``left``; None: write nothing."""
        segments = (self._settings.state_dir / "outbox").glob("*.jsonl")
        sizes = [path.stat().st_size for path in segments]
        self._limit(0 if left is None else max(sizes, default=0) + left)

    def free_disk(self) -> None:
        """Let files grow again."""
        self._limit(resource.RLIM_INFINITY)

    def close(self) -> None:
        """Let it deliver what is left, and end it."""
        if self._process is not None:
            process = self._running()
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(ANSWER_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            self._close(process)
            self._process = None

    def _limit(self, size: int) -> None:
        pid = self._running().pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    def _ask(self, asked: object) -> Answered:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        line = msgspec.json.encode(asked) + b"\n"
        while line:
            line = line[os.write(process.stdin.fileno(), line) :]
        ready, _, _ = select.select([process.stdout], [], [], ANSWER_SECONDS)
        answer = process.stdout.readline() if ready else b""
        assert answer, f"the gateway gave no answer within {ANSWER_SECONDS} s: {self.tail()}"
        return msgspec.json.decode(answer, type=Answered)

    def tail(self) -> str:
        """Return the end of its log."""
        return self._log.read_text(errors="replace")[-2000:]

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @staticmethod
    def _close(process: subprocess.Popen[bytes]) -> None:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
