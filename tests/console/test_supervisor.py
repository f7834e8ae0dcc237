from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from console.child import Program
from console.local_broker import free_port
from console.programs import make_topics
from console.stack_file import is_same_process, read_stack, start_time
from console.supervisor import Addresses, Supervisor
from console.waiting import Shown
from contracts.broker import _PATIENCE
from contracts.errors import DeadlineError, UnavailableError
from contracts.settings import Kafka
from tests.until import until

MakeProgram = Callable[..., Program]


def pids(state_dir: Path) -> dict[str, int]:
    stack = read_stack(state_dir)
    assert stack is not None
    return {entry.name: entry.pid for entry in stack.processes}


def states(state_dir: Path) -> dict[str, str]:
    stack = read_stack(state_dir)
    assert stack is not None
    return {entry.name: entry.state for entry in stack.processes}


def test_programs_start_by_their_needs_and_stop_in_reverse(
    make_program: MakeProgram, state_dir: Path, tmp_path: Path, shown: Shown
) -> None:
    programs = [make_program("a"), make_program("b", ("a",)), make_program("c", ("b",))]
    supervisor = Supervisor(state_dir, programs, Addresses(), shown)
    supervisor.start()
    stack = read_stack(state_dir)
    supervisor.stop()
    assert stack is not None
    assert stack.phase == "running"
    assert [entry.state for entry in stack.processes] == ["running"] * 3
    assert (tmp_path / "ended").read_text().split() == ["c", "b", "a"]
    assert not any(is_same_process(entry.pid, entry.started) for entry in stack.processes)


def test_a_process_that_is_killed_starts_again(
    make_program: MakeProgram, state_dir: Path, shown: Shown
) -> None:
    supervisor = Supervisor(state_dir, [make_program("a"), make_program("b")], Addresses(), shown)
    supervisor.start()
    try:
        before = pids(state_dir)
        os.kill(before["a"], signal.SIGKILL)

        def is_back() -> bool:
            supervisor.check()
            return pids(state_dir)["a"] not in (0, before["a"])

        until("restart of a", is_back)
        stack = read_stack(state_dir)
        assert stack is not None
        assert {entry.name: entry.restarts for entry in stack.processes} == {"a": 1, "b": 0}
        assert pids(state_dir)["b"] == before["b"]
    finally:
        supervisor.stop()


def test_a_process_whose_last_step_fails_is_not_ready_yet_and_holds_up_no_other(
    make_program: MakeProgram,
    state_dir: Path,
    shown: Shown,
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker gets its topics after each restart, and may be away again by then."""
    monkeypatch.setitem(_PATIENCE, "bootstrap_timeout_ms", 300)
    away = replace(kafka, bootstrap=f"127.0.0.1:{free_port()}")
    addresses = [kafka, away, kafka]

    def make() -> None:
        make_topics(addresses.pop(0) if len(addresses) > 1 else addresses[0])

    broker = replace(make_program("broker"), after_ready=make)
    supervisor = Supervisor(state_dir, [broker, make_program("a")], Addresses(), shown)
    supervisor.start()
    try:
        before = pids(state_dir)
        os.kill(before["broker"], signal.SIGKILL)

        def failed() -> bool:
            supervisor.check()
            return len(addresses) == 1

        until("a step that fails", failed, 40.0)
        assert states(state_dir) == {"broker": "starting", "a": "running"}

        def is_back() -> bool:
            supervisor.check()
            return states(state_dir)["broker"] == "running"

        until("the step that goes well", is_back)
        assert pids(state_dir)["a"] == before["a"]
    finally:
        supervisor.stop()


def test_what_the_supervisor_did_not_start_is_left_alone(
    make_program: MakeProgram, state_dir: Path, shown: Shown
) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    stranger = subprocess.Popen(command)
    try:
        supervisor = Supervisor(state_dir, [make_program("a")], Addresses(), shown)
        supervisor.start()
        supervisor.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_program_that_ends_while_starting_is_named_with_the_end_of_its_log(
    make_program: MakeProgram, state_dir: Path, tmp_path: Path, shown: Shown
) -> None:
    broken = make_program("broken", ("a",), code="raise SystemExit('no such model')")
    supervisor = Supervisor(state_dir, [make_program("a"), broken], Addresses(), shown)
    with pytest.raises(UnavailableError, match=r"broken ended with code 1[\s\S]*no such model"):
        supervisor.start()
    assert (tmp_path / "ended").read_text().split() == ["a"]


def test_a_program_that_never_gets_ready_meets_its_deadline(
    make_program: MakeProgram, state_dir: Path, shown: Shown
) -> None:
    program = make_program("slow", code="import time\nwhile True: time.sleep(0.1)")
    hurried = Program(
        name="slow", command=program.command, missing=lambda _pid: "a sign", start_seconds=0.3
    )
    supervisor = Supervisor(state_dir, [hurried], Addresses(), shown)
    with pytest.raises(DeadlineError, match=r"slow is not ready after 0 s: a sign"):
        supervisor.start()


def test_children_end_when_the_supervisor_is_killed(state_dir: Path, tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from console.child import Program
from console.supervisor import Addresses, Supervisor
from console.waiting import Shown
sleeper = (sys.executable, "-c", "import time; time.sleep(600)")
program = Program(name="a", command=sleeper, missing=lambda pid: "")
supervisor = Supervisor(Path({str(state_dir)!r}), [program], Addresses(), Shown())
supervisor.start()
Path({str(tmp_path / "up")!r}).touch()
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        until("start of the stack", (tmp_path / "up").exists)
        child = pids(state_dir)["a"]
        started = start_time(child)
        assert started > 0
        parent.kill()
        parent.wait()
        until("end of the child", lambda: not is_same_process(child, started))
    finally:
        parent.kill()
        parent.wait()


def test_a_process_that_ignores_sigterm_is_killed_after_its_deadline(
    make_program: MakeProgram, state_dir: Path, shown: Shown
) -> None:
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[3], 'w').write(str(os.getpid()))\n"
        "while True: time.sleep(0.1)"
    )
    stubborn = make_program("stubborn", code=code)
    impatient = Program(
        name="stubborn", command=stubborn.command, missing=stubborn.missing, stop_seconds=0.2
    )
    supervisor = Supervisor(state_dir, [impatient], Addresses(), shown)
    supervisor.start()
    pid = pids(state_dir)["stubborn"]
    supervisor.stop()
    assert start_time(pid) == 0


def test_programs_that_nothing_needs_stop_together(
    make_program: MakeProgram, state_dir: Path, tmp_path: Path, shown: Shown
) -> None:
    """Each of the two ends only once both were told to."""
    code = (
        "import os, pathlib, signal, sys, time\n"
        "name, ended, pid_file = sys.argv[1:]\n"
        "told = pathlib.Path(ended).parent\n"
        "def end(*_):\n"
        "    (told / f'told-{name}').touch()\n"
        "    while len(list(told.glob('told-*'))) < 2: time.sleep(0.02)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path(pid_file).write_text(str(os.getpid()))\n"
        "while True: time.sleep(0.05)"
    )
    pair = [make_program(name, ("a",), code=code) for name in ("b", "c")]
    supervisor = Supervisor(state_dir, [make_program("a"), *pair], Addresses(), shown)
    supervisor.start()
    supervisor.stop()
    assert (tmp_path / "ended").read_text().split() == ["a"]
    assert "was killed" not in (tmp_path / "shown.txt").read_text()
