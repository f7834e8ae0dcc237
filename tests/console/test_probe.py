"""What the supervisor says on behalf of servers that write no heartbeat."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from msgspec.structs import replace

from console import probe
from console.child import Program
from console.probe import Answer, Server, broker_server, engine_server
from console.stack import outside_servers
from console.stack_file import read_stack
from console.status import Row, is_sound, status_of, status_text
from console.supervisor import Addresses, Supervisor
from console.waiting import Shown
from contracts.clock import SystemClock
from contracts.errors import UnavailableError
from contracts.settings import Engine, Kafka, Settings
from tests.until import until

VLLM_METRICS = """# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="base"} 2.0
vllm:num_requests_waiting{engine="1",model_name="base"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="base",reason="capacity"} 5.0
vllm:num_requests_running{engine="0",model_name="base"} 16.0
"""
MakeProgram = Callable[..., Program]


@contextmanager
def serving(text: str, status: int = 200, held: Event | None = None) -> Iterator[str]:
    """An HTTP server that answers every GET the same, once ``held`` is set if it is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if held is not None:
                held.wait(60)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        if held is not None:
            held.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_requests_that_wait_in_vllm_are_the_engines_lag() -> None:
    with serving(VLLM_METRICS) as url:
        assert engine_server(url).ask() == Answer(5)


def test_an_engine_that_does_not_count_says_so_in_the_note() -> None:
    with serving("# nothing\n") as url:
        assert engine_server(url).ask() == Answer(
            None, f"lag unknown: {url}/metrics has no vllm:num_requests_waiting"
        )
    with serving("", 404) as url:
        assert engine_server(url).ask() == Answer(
            None, f"lag unknown: GET {url}/metrics answers 404"
        )


def test_an_engine_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ANSWER_SECONDS", 0.2)
    with serving("", held=Event()) as url, pytest.raises(UnavailableError, match="timed out"):
        engine_server(url).ask()
    with pytest.raises(UnavailableError, match="refused"):
        engine_server(url).ask()


def test_a_sound_broker_has_no_replica_behind_and_missing_topics_are_named(kafka: Kafka) -> None:
    server = broker_server(kafka)
    assert server.ask() == Answer(0)
    server.close()
    other = broker_server(replace(kafka, prefix="nobody-"))
    found = other.ask()
    other.close()
    assert found.lag == 0
    assert found.note.startswith("missing: nobody-")


def rows(state_dir: Path) -> dict[str, Row]:
    return {row.process: row for row in status_of(state_dir, SystemClock()).processes}


def test_servers_of_others_have_a_row_with_age_and_lag(
    kafka: Kafka, state_dir: Path, shown: Shown, make_program: MakeProgram
) -> None:
    with serving(VLLM_METRICS) as url:
        given = Settings(kafka=kafka, engine=Engine(url=url))
        servers = outside_servers(given)
        supervisor = Supervisor(state_dir, [make_program("a")], Addresses(), shown, servers)
        supervisor.start()
        try:
            until("an answer of both", lambda: {"broker", "engine"} <= answered(state_dir))
            found = rows(state_dir)
            assert {name: found[name].state for name in found} == {
                "broker": "outside",
                "engine": "outside",
                "a": "running",
            }
            assert (found["broker"].lag, found["engine"].lag) == (0, 5)
            assert found["a"].note == "no heartbeat yet"
            status = status_of(state_dir, SystemClock())
            assert is_sound(status)
            assert "age s" in status_text(status)
        finally:
            supervisor.stop()


def answered(state_dir: Path) -> set[str]:
    return {name for name, row in rows(state_dir).items() if row.age_seconds is not None}


def test_a_server_that_hangs_grows_old_and_holds_up_no_restart(
    state_dir: Path, shown: Shown, make_program: MakeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.05)
    hangs, asked, release = Event(), Event(), Event()

    def ask() -> Answer:
        if hangs.is_set():
            asked.set()
            release.wait(60)
            raise UnavailableError("GET /metrics: timed out")
        return Answer(0)

    server = replace(make_program("engine"), server=Server(name="engine", ask=ask))
    supervisor = Supervisor(state_dir, [server, make_program("a")], Addresses(), shown)
    supervisor.start()
    try:
        until("an answer", lambda: "engine" in answered(state_dir))
        hangs.set()
        assert asked.wait(20)
        before = rows(state_dir)
        os.kill(before["a"].pid, signal.SIGKILL)

        def is_back() -> bool:
            supervisor.check()
            return rows(state_dir)["a"].pid not in (0, before["a"].pid)

        until("restart of a while the engine hangs", is_back)
        release.set()
        until("the note", lambda: rows(state_dir)["engine"].note)
        after = rows(state_dir)["engine"]
        assert (after.note, after.state) == ("GET /metrics: timed out", "running")
        assert after.age_seconds is not None
        assert before["engine"].age_seconds is not None
        assert after.age_seconds > before["engine"].age_seconds
    finally:
        release.set()
        supervisor.stop()


def test_a_server_of_others_that_was_never_heard_is_silent(state_dir: Path, shown: Shown) -> None:
    def ask() -> Answer:
        raise UnavailableError("nobody there")

    program = Program(
        name="a",
        command=(sys.executable, "-c", "import time; time.sleep(600)"),
        missing=lambda _: "",
    )
    outside = [Server(name="broker", ask=ask)]
    supervisor = Supervisor(state_dir, [program], Addresses(), shown, outside)
    supervisor.start()
    try:
        assert rows(state_dir)["broker"].state == "silent"
        assert not is_sound(status_of(state_dir, SystemClock()))
        assert read_stack(state_dir) is not None
    finally:
        supervisor.stop()
