"""A process of ours that answers HTTP, started by a test and ended with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from tests.until import until

ADMIN_KEY = "the-admin-key-of-the-tests"
START_SECONDS = 300.0  # vLLM on a busy machine takes minutes
STOP_SECONDS = 30.0


class Server:
    """A running process, its address and its log."""

    def __init__(self, argv: list[str], environment: dict[str, str], port: int, log: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                argv,
                stdout=file,
                stderr=file,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def wait(self, path: str) -> Server:
        """Wait until a GET of ``path`` gives 200."""

        def answers() -> bool:
            assert self.process.poll() is None, f"ended: {self._tail()}"
            try:
                self.get(path)
            except (HTTPException, OSError):
                return False
            return True

        try:
            until(f"an answer of {self.url}{path}", answers, START_SECONDS, state=self._tail)
        except AssertionError:
            self.kill()
            raise
        return self

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _tail(self) -> str:
        return self.log()[-4000:]

    def request(
        self, method: str, path: str, body: bytes = b"", key: str = ""
    ) -> tuple[HTTPResponse, bytes]:
        """Return the answer and its body; ``key`` is sent as a bearer token."""
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
                connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> bytes:
        response, content = self.request("GET", path)
        if response.status != 200:
            raise HTTPException(f"{path}: {response.status} {content!r}")
        return content

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/healthz"))
        return found

    def stop(self) -> int:
        """End the process with SIGTERM; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """End the process with SIGKILL."""
        self.process.kill()
        self.process.wait()
