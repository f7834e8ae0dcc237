"""Ctrl-C during the demo while the engine holds every request and answers none."""

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

from console.demo_users import CONCURRENCY, measure
from console.stack_file import StackFile, is_same_process, read_stack
from contracts.events import BASE_VERSION
from contracts.settings import Engine, Settings
from tests.until import until


class HoldingEngine(ThreadingHTTPServer):
    """Healthy and serving the base model, but a chat request gets no answer; use as a context."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.held: list[int] = []
        self.left: list[int] = []


class _Handler(BaseHTTPRequestHandler):
    server: HoldingEngine

    def do_GET(self) -> None:
        body = msgspec.json.encode({"data": [{"id": BASE_VERSION}]})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.held.append(self.client_address[1])
        self.connection.settimeout(300)
        if self.connection.recv(1) == b"":
            self.server.left.append(self.client_address[1])

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def engine() -> Iterator[HoldingEngine]:
    server = HoldingEngine()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_measuring_ends_when_told_to_and_drops_the_requests_under_way(
    engine: HoldingEngine, tmp_path: Path
) -> None:
    settings = Settings(engine=Engine(url=engine.url, timeout_seconds=300.0), data_dir=tmp_path)
    stop, interrupted = Event(), Event()

    def run() -> None:
        try:
            measure(settings, "desk", BASE_VERSION, 64, stop)
        except KeyboardInterrupt:
            interrupted.set()

    Thread(target=run, daemon=True).start()
    until("requests under way", lambda: len(engine.held) == CONCURRENCY)
    stop.set()
    assert interrupted.wait(20)
    until("the end of the requests", lambda: sorted(engine.left) == sorted(engine.held))


@pytest.mark.loop
def test_ctrl_c_ends_the_demo_and_all_that_it_started(
    engine: HoldingEngine, tmp_path: Path, tiny_policy: Path
) -> None:
    path = tmp_path / "headrace.yaml"
    state = tmp_path / "state"
    given = {"state_dir": str(state), "engine": {"url": engine.url, "timeout_seconds": 300.0}}
    path.write_bytes(msgspec.json.encode(given))
    output = tmp_path / "demo.txt"
    with output.open("w") as log:
        demo = subprocess.Popen(
            [
                *(sys.executable, "-m", "console", "--settings", str(path)),
                *("demo", "--model", str(tiny_policy)),
            ],
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:

        def asks() -> bool:
            assert demo.poll() is None, output.read_text()
            return len(engine.held) == CONCURRENCY

        until("held-out questions", asks, 240.0, state=output.read_text)
        [run_dir] = (state / "runs").iterdir() if (state / "runs").is_dir() else [state]
        stack = read_stack(run_dir)
        assert isinstance(stack, StackFile), list(state.rglob("stack.json"))
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130, output.read_text()
        started = [entry for entry in stack.processes if entry.pid]
        assert len(started) == 5
        assert not [e.name for e in started if is_same_process(e.pid, e.started)]
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
