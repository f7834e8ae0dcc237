"""Runs the learner's replay as a process of its own and shows how far it has come."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO

import msgspec
from msgspec.structs import replace

from console.child_environment import inherited_environment, public_settings
from console.evidence import version_directories
from console.release_view import the_version
from console.stack_file import read_stack
from console.waiting import Shown
from contracts.clock import SystemClock
from contracts.codec import to_json
from contracts.errors import DeadlineError, HeadraceError, SettingsError, UnavailableError
from contracts.events import BASE_VERSION
from contracts.settings import Kafka, Settings
from learner.replay_report import Failed, Line, ReplayOrder, ReplayReport, Step, Working

SILENT_SECONDS = 600.0
END_SECONDS = 10.0
BAR = 30


def with_model(settings: Settings, model: str) -> Settings:
    """Return the settings with the base model: the one given, that of the settings, or the stack's.

    SettingsError when there is none.
    """
    stack = read_stack(settings.state_dir)
    found = model or settings.policy.model or (stack.model if stack else "")
    if not found:
        raise SettingsError(
            "no base model is known: give --model PATH, or policy.model in the settings"
        )
    return replace(settings, policy=replace(settings.policy, model=found))


def order_of(
    settings: Settings, start: str, end: str, user: str | None, out: Path | None
) -> ReplayOrder:
    """Return the order with whole ids; SettingsError for what names no version."""
    found = version_directories(settings.state_dir / "versions")
    mine = {v: path for v, path in found.items() if path.parent.name == settings.policy.name}
    whole = the_version(mine, end, settings.state_dir)
    name = f"{SystemClock().now():%Y%m%dT%H%M%S}-{whole[:12]}"
    default = settings.state_dir / "replays" / settings.policy.name / name
    return ReplayOrder(
        directory=str((out or default).absolute()),
        end=whole,
        start=start
        if start in ("", BASE_VERSION)
        else the_version(mine, start, settings.state_dir),
        without_user=user or "",
    )


def run_replay(settings: Settings, kafka: Kafka, order: ReplayOrder, shown: Shown) -> ReplayReport:
    """Replay and return what was found.

    SettingsError for an order that cannot be done, UnavailableError when it failed, DeadlineError
    when the broker did not answer in time, or nothing was heard of the replay for 600 s.
    """
    general = replace(settings, kafka=kafka, segments=())
    directory = Path(order.directory)
    log = directory.with_name(f"{directory.name}.log")
    process = _start(general, _words(order), log)
    try:
        last = _follow(process, shown, log)
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if isinstance(last, Failed):
        raise _error_of(last)
    with _writing(directory):
        (directory / "report.json").write_bytes(msgspec.json.format(to_json(last), indent=2))
    return last


def _words(order: ReplayOrder) -> str:
    try:
        return to_json(order).decode()
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"{error.object!r} is no text in UTF-8, as ids of users and names of directories are"
        ) from error


def _start(settings: Settings, order: str, log: Path) -> subprocess.Popen[bytes]:
    with _writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    with output:
        return subprocess.Popen(
            [sys.executable, "-m", "learner", "replay", order],
            env=inherited_environment() | public_settings(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be written ({error}); give --out a new directory where this user may "
            "write, on a disk with space"
        ) from error


def _error_of(failed: Failed) -> HeadraceError:
    if failed.usage:
        return SettingsError(failed.message)
    return DeadlineError(failed.message) if failed.late else UnavailableError(failed.message)


def _follow(process: subprocess.Popen[bytes], shown: Shown, log: Path) -> ReplayReport | Failed:
    """Show the steps and return the outcome."""
    assert process.stdout is not None
    lines: Queue[bytes] = Queue()
    Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    shown.begin()
    reached = ""
    while True:
        try:
            line = lines.get(timeout=SILENT_SECONDS)
        except Empty as error:
            raise DeadlineError(
                f"nothing was heard of the replay for {SILENT_SECONDS:.0f} s, as when it waits for "
                f"the broker; see 'headrace doctor' and {log}, and try again"
            ) from error
        if not line:
            raise UnavailableError(f"the replay ended without a word; see {log}")
        told: Line = msgspec.json.decode(line, type=Line)
        if isinstance(told, Working):
            continue
        if not isinstance(told, Step):
            if reached:
                shown.say(reached)
            return told
        reached = step_text(told)
        shown.waiting(reached)


def _read(stream: IO[bytes], lines: Queue[bytes]) -> None:
    """Pass lines on, and an empty one at the end."""
    for line in stream:
        lines.put(line)
    lines.put(b"")


def step_text(step: Step) -> str:
    """Return one line with a bar."""
    share = (step.offset + 1 - step.first) / max(step.next - step.first, 1)
    bar = "#" * int(BAR * share)
    made = f", came to version {step.versions}" if step.versions else ""
    return (
        f"  {step.what} [{bar.ljust(BAR, '.')}] {share:4.0%} "
        f"offset {step.offset} of {step.first} to {step.next - 1}{made}"
    )
