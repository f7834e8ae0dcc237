"""``headrace replay``: the real command, with the learner's code in a process of its own."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from console.main import main
from contracts.clock import ManualClock
from contracts.ids import NewId
from contracts.settings import Kafka, Settings, to_environment
from learner.loop import Learner
from learner.outlet import Outlet
from learner.pulse import Pulse
from tests.console.story import write_version
from tests.learner.kill_plan import Log, MakeSample
from tests.learner.reading import read_on
from tests.topic_log import write

Run = Callable[..., Result]
CHANGED_AT = 20


@pytest.fixture
def settings(settings: Settings, kafka: Kafka) -> Settings:
    return replace(settings, kafka=kafka)


@pytest.fixture
def versions(
    settings: Settings,
    rng: random.Random,
    make_sample: MakeSample,
    clock: ManualClock,
    new_id: NewId,
) -> list[str]:
    """Versions of a log; the learning rate changed in the middle of the first."""
    pieces = Log(rng, make_sample, logged_share=0.5).draw(100, [])
    found: list[str] = []
    for rate, part in ((2e-3, pieces[:CHANGED_AT]), (4e-3, pieces[CHANGED_AT:])):
        write(settings.kafka, *part)
        mine = replace(settings, learner=replace(settings.learner, learning_rate=rate))
        outlet = Outlet(settings.kafka, clock, new_id, Event())
        learner = Learner(
            mine, clock, outlet, Pulse(mine, clock, "learner"), lambda seen: [0.5] * len(seen)
        )
        found = list(read_on(learner).progress.versions)
    return found


@pytest.fixture
def run(settings: Settings) -> Run:
    environment = to_environment(settings)

    def make(*words: str) -> Result:
        return CliRunner().invoke(main, ["replay", *words], env=environment)

    return make


def test_a_replay_shows_its_progress_and_every_version_and_leaves_a_report(
    run: Run, versions: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "again"
    found = run("--from", versions[0][:8], "--to", versions[-1][:8], "--out", str(out))
    assert found.exit_code == 0, found.output
    rows = [line.split() for line in found.output.splitlines()]
    assert "replaying" in found.output
    assert "100% offset" in found.output
    assert [
        str(len(versions)),
        versions[-1][:12],
        versions[-1][:12],
        *["the", "same", "the", "same"],
    ] in rows
    assert "every version came out the same, byte for byte" in found.output
    report = json.loads((out / "report.json").read_text())
    assert [one["remade"] for one in report["versions"]] == versions[1:]
    again = run("--from", versions[0][:8], "--to", versions[-1][:8], "--out", str(out))
    assert again.exit_code == 2
    assert "is not empty; give --out a directory that is new" in again.output


def test_a_difference_ends_with_1_and_says_where_it_begins(
    run: Run, versions: list[str], state_dir: Path
) -> None:
    found = run("--from", "base", "--to", versions[1])
    assert found.exit_code == 1, found.output
    assert f"version {versions[0][:12]} is the first that differs, in" in found.output
    assert "settings that changed between two versions" in found.output
    (made,) = (path for path in (state_dir / "replays" / "assistant").iterdir() if path.is_dir())
    assert made.name.endswith(versions[1][:12])


def test_leaving_a_user_out_says_what_went_and_what_moved(run: Run, versions: list[str]) -> None:
    found = run("--to", versions[-1], "--without-user", "user-3", "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["removal"]["samples"] == sum(report["removal"]["outcomes"].values()) > 0
    assert 0 < report["removal"]["moved"] < 2
    assert not report["same"]


def test_what_is_not_the_doing_of_the_user_left_out_ends_with_1(
    run: Run, versions: list[str]
) -> None:
    """The first version is from before the user, and its settings changed within it."""
    found = run("--from", "base", "--to", versions[-1], "--without-user", "user-3")
    assert found.exit_code == 1, found.output
    said = f"not the user's doing alone: version {versions[0][:12]} differs for another reason"
    assert said in found.output
    assert "settings that changed between two versions" in found.output


def test_what_names_no_version_or_no_model_is_wrong_usage(
    run: Run, versions: list[str], settings: Settings
) -> None:
    for words, said in (
        (("--to", "xyz"), "begins with 'xyz'"),
        (("--to", versions[0], "--from", "xyz"), "begins with 'xyz'"),
        (("--to", versions[0], "--policy", "another"), "is not one of assistant"),
        (("--to", versions[0], "--without-user", "user-33"), "a sample of user 'user-33'"),
        ((), "Missing option '--to'"),
    ):
        found = run(*words)
        assert found.exit_code == 2
        assert said in " ".join(found.output.split())
    without = to_environment(replace(settings, policy=replace(settings.policy, model="")))
    found = CliRunner().invoke(main, ["replay", "--to", versions[0]], env=without)
    assert found.exit_code == 2
    assert "give --model PATH" in found.output


def test_an_id_that_is_empty_or_no_text_is_wrong_usage_and_not_nobody(
    run: Run, versions: list[str]
) -> None:
    for user, said in (("", "--without-user is empty"), ("\udcff", "is no text in UTF-8")):
        found = run("--to", versions[-1], "--without-user", user)
        assert found.exit_code == 2, found.output
        assert said in found.output


def test_a_place_that_cannot_be_written_is_named(
    run: Run, versions: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    found = run("--to", versions[-1], "--out", str(tmp_path / "file" / "again"))
    assert found.exit_code == 1
    assert isinstance(found.exception, SystemExit)
    assert "cannot be written" in found.output


def test_a_broker_that_went_away_ends_with_3_and_says_so(
    settings: Settings, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had answered the command, and does not answer the learner's code."""
    version = write_version(state_dir / "versions", 1, "base", [])
    monkeypatch.setattr("console.log_access._answering", lambda kafka: kafka)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        away = Kafka(bootstrap=f"127.0.0.1:{nobody.getsockname()[1]}")
        environment = to_environment(replace(settings, kafka=away))
        found = CliRunner().invoke(main, ["replay", "--to", version], env=environment)
    assert found.exit_code == 3, found.output
    assert f"samples at {away.bootstrap} could not be read" in found.output
