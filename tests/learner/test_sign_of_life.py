"""A process that is busy for long says that it is there, and is silent while it may not speak."""

from __future__ import annotations

import threading

import msgspec
import pytest

from contracts.codec import to_json
from contracts.errors import UnavailableError
from learner.__main__ import main
from learner.replay_report import Failed, Line, ReplayOrder, ReplayReport, Working
from learner.sign_of_life import SignOfLife
from tests.until import until

SHORT = 0.001


def _await_end() -> None:
    for thread in [one for one in threading.enumerate() if one.name == "sign of life"]:
        thread.join(10.0)
        assert not thread.is_alive()


def test_it_speaks_again_and_again_but_never_during_a_silence_or_after_the_end() -> None:
    said: list[bool] = []
    silent = False
    life = SignOfLife(lambda: said.append(silent), SHORT)
    ticks: list[int] = []
    other = SignOfLife(lambda: ticks.append(1), SHORT)
    other.begin()
    life.begin()
    for _ in range(20):
        before = len(said)
        until("a sign of life", lambda before=before: len(said) > before)  # type: ignore[misc] # mypy has no type for defaults of lambdas
        with life.silence():
            silent, heard = True, len(ticks)
            until("another one to speak", lambda heard=heard: len(ticks) > heard + 3)  # type: ignore[misc] # as above
            silent = False
    other.end()
    with life.silence():
        life.end()
        before = len(said)
    _await_end()
    assert len(said) == before
    assert not any(said)


def test_where_nobody_hears_it_it_ends_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def say() -> None:
        raise BrokenPipeError("nobody reads")

    SignOfLife(say, SHORT).begin()
    _await_end()
    assert [record.message for record in caplog.records] == ["nobody reads"]


def test_a_replay_says_that_it_works_while_one_batch_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Line] = []

    def heard() -> bool:
        lines = capsys.readouterr().out.splitlines()
        told.extend(msgspec.json.decode(line, type=Line) for line in lines)
        return len(told) > 2

    def rebuild(*_: object) -> ReplayReport:
        until("two signs of life", heard)
        raise UnavailableError("it ends here")

    monkeypatch.setattr("learner.sign_of_life.SIGN_OF_LIFE", SHORT)
    monkeypatch.setattr("learner.rebuild.rebuild", rebuild)
    assert main(["replay", to_json(ReplayOrder(directory="x", end="y")).decode()]) == 1
    _await_end()
    heard()
    assert Failed(message="it ends here") in told
    assert all(line in (Working(), Failed(message="it ends here")) for line in told)
