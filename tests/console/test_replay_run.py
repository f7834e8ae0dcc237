"""What `headrace replay` makes of what the learner's code tells it, and of its silence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from console import replay_run
from console.replay_run import run_replay
from console.waiting import Shown
from contracts.codec import to_json
from contracts.errors import DeadlineError, HeadraceError, SettingsError, UnavailableError
from contracts.settings import Kafka, Settings
from learner.replay_report import Failed, Line, ReplayOrder, Step, Working

Tell = Callable[..., None]

STEP = Step(what="replaying", offset=4, first=0, next=8)


@pytest.fixture
def replay(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path, tmp_path: Path, shown: Shown
) -> Callable[..., None]:
    """Run a program in place of the learner's code, which tells these lines and then does this."""

    def make(*lines: Line, then: str = "exit 1") -> None:
        told = " ".join(f"'{to_json(line).decode()}'" for line in lines)
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\nprintf '%s\\n' {told}\n{then}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        order = ReplayOrder(directory=str(tmp_path / "again"), end="v")
        run_replay(Settings(state_dir=state_dir), Kafka(), order, shown)

    return make


@pytest.mark.parametrize(
    ("failed", "error"),
    [
        (Failed(message="so it was"), UnavailableError),
        (Failed(message="so it was", usage=True), SettingsError),
        (Failed(message="so it was", late=True), DeadlineError),
    ],
)
def test_signs_of_life_are_no_outcome(
    replay: Tell, tmp_path: Path, failed: Failed, error: type[HeadraceError]
) -> None:
    with pytest.raises(error, match="so it was"):
        replay(Working(), STEP, Working(), Working(), failed)
    assert (tmp_path / "shown.txt").read_text().count("replaying") == 1


def test_what_says_nothing_at_all_is_ended_and_its_log_named(
    replay: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_run, "SILENT_SECONDS", 0.2)
    with pytest.raises(DeadlineError, match=r"as when it waits for the broker.*again\.log"):
        replay(STEP, then="exec sleep 600")
