"""The heartbeat outlives a disk that does not take it for a while."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from contracts.clock import SystemClock
from contracts.heartbeat import heartbeat_path, read_heartbeat
from contracts.settings import Settings
from learner.pulse import Pulse
from tests.until import until


def test_a_heartbeat_that_cannot_be_written_does_not_end_those_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = heartbeat_path(tmp_path, "learner").parent
    folder.write_text("in the way")  # no beat can be written while a file has the folder's name
    with (
        caplog.at_level(logging.WARNING),
        Pulse(Settings(state_dir=tmp_path), SystemClock(), "learner"),
    ):
        until("a beat fails", lambda: "cannot write the heartbeat" in caplog.text)
        folder.unlink()
        until("a later beat is there", lambda: read_heartbeat(tmp_path, "learner"))
