"""Ctrl-C and SIGTERM while the Hugging Face hub holds back a model's weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import msgspec
import pytest

from tests.until import until

COMMIT = "a" * 40


class HoldingHub(ThreadingHTTPServer):
    """Knows one model; of its files it sends the first byte and then nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.holds, self.release = Event(), Event()


class _Handler(BaseHTTPRequestHandler):
    server: HoldingHub

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            files = [{"rfilename": "model.safetensors"}]
            body = msgspec.json.encode({"id": "org/name", "sha": COMMIT, "siblings": files})
            self._head(len(body))
            self.wfile.write(body)
            return
        self._head(1000)
        self.wfile.write(b"x")
        self.server.holds.set()
        self.server.release.wait(300)

    def do_HEAD(self) -> None:
        self._head(1000)

    def _head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", f'"{"b" * 40}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[HoldingHub]:
    server = HoldingHub()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("command", "number"),
    [("up", signal.SIGINT), ("up", signal.SIGTERM), ("demo", signal.SIGINT)],
)
def test_a_signal_ends_a_download_that_stands_still(
    hub: HoldingHub, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    settings = tmp_path / "headrace.yaml"
    settings.write_bytes(
        msgspec.json.encode({"state_dir": str(tmp_path / "state"), "gateway": {"port": 0}})
    )
    output = tmp_path / "output.txt"
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    with output.open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "console", "--settings", str(settings)),
                *(command, "--model", "org/name"),
            ],
            stdout=log,
            stderr=log,
            env=os.environ | environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "300"},
        )
    try:

        def downloads() -> bool:
            assert process.poll() is None, output.read_text()
            return hub.holds.is_set()

        until("the download", downloads, 120.0, state=output.read_text)
        process.send_signal(number)
        assert process.wait(30) == -number, output.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
