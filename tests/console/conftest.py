"""Small real programs for the supervisor's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from console.child import Program
from console.waiting import Shown
from contracts.ids import NewId
from contracts.settings import Kafka
from tests.console.story import Story, produce, tell, write_spans

MakeProgram = Callable[..., Program]

SLEEPER = """
import os, signal, sys, time
def end(*_):
    open(sys.argv[2], 'a').write(sys.argv[1] + ' ')
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open(sys.argv[3], 'w').write(str(os.getpid()))
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def make_program(tmp_path: Path) -> MakeProgram:
    """A program that is ready once it wrote its pid, and notes when SIGTERM ends it."""

    def make(name: str, needs: tuple[str, ...] = (), code: str = SLEEPER) -> Program:
        pid_file = tmp_path / f"{name}.pid"

        def missing(pid: int) -> str:
            written = pid_file.read_text() if pid_file.exists() else ""
            return "" if written == str(pid) else "its pid file"

        arguments = (name, str(tmp_path / "ended"), str(pid_file))
        return Program(
            name=name,
            command=(sys.executable, "-c", code, *arguments),
            missing=missing,
            needs=needs,
            start_seconds=20.0,
            stop_seconds=10.0,
        )

    return make


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    return Shown((tmp_path / "shown.txt").open("w"))


@pytest.fixture
def story(kafka: Kafka, state_dir: Path, new_id: NewId) -> Iterator[Story]:
    told = tell(state_dir / "versions", new_id)
    write_spans(state_dir, "ab" * 16)
    produce(kafka, (*told.events, *tell(state_dir.with_name("other"), new_id).events))
    yield told
