"""The list of versions is whole, whatever a broker has removed, and never lets what serves go."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from console.main import main
from console.releases import VersionRow, is_whole, version_rows, versions_text
from contracts.events import BASE_VERSION, Candidate, Release, Rollout
from contracts.manifest import Manifest, read_manifest
from contracts.settings import Kafka
from contracts.topics import RELEASES, ROLLOUTS
from serving.rollout_transition import refused
from tests.console.story import write_version
from tests.topic_log import publish

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
POLICY = "assistant"


def _release(version: str, sequence: int, policy: str = POLICY) -> Release:
    return Release(
        id=f"release-{version}",
        time=NOW,
        policy=policy,
        version=version,
        sequence=sequence,
        parent=BASE_VERSION,
        location="x",
        newest_feedback_time=NOW,
    )


def _candidate(version: str, sequence: int) -> Candidate:
    return Candidate(version=version, sequence=sequence, location="x")


def _state(stable: Candidate, **changes: Any) -> Rollout:
    changes = {"policy": POLICY, "epoch": 1, "phase": "idle", **changes}
    return Rollout(id=f"state-{changes['epoch']}", time=NOW, stable=stable, **changes)


@pytest.fixture
def versions(state_dir: Path) -> list[str]:
    """Ids of five versions on disk, numbered from 38."""
    return [write_version(state_dir / "versions", n, "base", []) for n in range(38, 43)]


def _manifests(state_dir: Path) -> dict[str, Manifest]:
    folder = state_dir / "versions" / POLICY
    return {path.name: read_manifest(path)[1] for path in folder.iterdir()}


def _left(versions: list[str]) -> tuple[Release, Rollout]:
    """What compaction leaves: 38 served before 39, 40 serves, 41 was refused; 42 is not told."""
    one, _, stable, tried, _ = (_candidate(v, n) for n, v in enumerate(versions, 38))
    state = refused(_state(stable, history=(one,), offered=(stable,)), tried, "no good")
    return _release(versions[3], 41), state


def _by_number(rows: list[VersionRow]) -> dict[int, tuple[str, str]]:
    return {row.sequence: (row.phase, row.use) for row in rows}


def test_versions_that_the_broker_forgot_are_listed_with_what_is_known_of_them(
    state_dir: Path, versions: list[str]
) -> None:
    rows = version_rows(_left(versions), _manifests(state_dir), whole=False)

    assert _by_number(rows) == {
        0: ("base", "rollback"),
        38: ("served", "rollback"),
        39: ("unknown", ""),
        40: ("served", "stable"),
        41: ("refused", ""),
        42: ("unknown", "unknown"),
    }
    assert [row.sequence for row in rows if row.stable] == [40]


def test_the_command_lists_what_serves_though_the_log_has_only_the_newest_of_each_topic(
    state_dir: Path, versions: list[str], kafka: Kafka
) -> None:
    release, state = _left(versions)
    publish(kafka, RELEASES, release)
    publish(kafka, ROLLOUTS, state)
    environment = {
        "HEADRACE_STATE_DIR": str(state_dir),
        "HEADRACE_KAFKA__BOOTSTRAP": kafka.bootstrap,
        "HEADRACE_KAFKA__PREFIX": kafka.prefix,
    }

    found = CliRunner().invoke(main, ["releases", "list", "--json"], env=environment)

    assert found.exit_code == 0, found.output
    rows = {row["version"]: row for row in json.loads(found.output)}
    assert rows.keys() == {BASE_VERSION, *versions}
    assert (rows[versions[2]]["stable"], rows[versions[2]]["use"]) == (True, "stable")
    assert rows[versions[0]]["use"] == "rollback"
    assert rows[versions[4]]["phase"] == "not announced"  # nothing was removed here


def test_what_serves_is_listed_though_its_files_are_elsewhere_and_its_release_is_gone() -> None:
    state = _state(_candidate("v40", 40), candidate=_candidate("v41", 41), phase="canary")

    rows = version_rows([state], whole=False)

    assert _by_number(rows)[40] == ("served", "stable")
    assert _by_number(rows)[41] == ("canary", "candidate")


def test_without_a_state_nobody_can_say_what_is_needed(
    state_dir: Path, versions: list[str]
) -> None:
    rows = version_rows([_release(versions[4], 42)], _manifests(state_dir), whole=False)

    assert {row.use for row in rows[1:5]} == {"unknown"}
    assert _by_number(rows)[42] == ("waiting", "waiting")


def test_a_release_waits_while_the_controller_has_not_read_it_whatever_its_number() -> None:
    state = _state(_candidate("v40", 40), positions={"releases/0": 7})
    events = [_release("old", 3), _release("drill", 2), state]

    rows = version_rows(events, offsets={"old": 6, "drill": 7}, whole=False)

    assert _by_number(rows)[3] == ("unknown", "")
    assert _by_number(rows)[2] == ("waiting", "waiting")


def test_each_policy_has_a_line_of_its_own() -> None:
    mine = _state(_candidate("v9", 9), positions={})
    other = replace(_state(_candidate("w2", 2)), policy="other")
    events = [_release("v9", 9), _release("w2", 2, "other"), _release("w3", 3, "other")]

    rows = version_rows([*events, mine, other])

    found = [(row.policy, row.version, row.phase, row.use) for row in rows[1:]]
    assert found == [
        (POLICY, "v9", "served", "stable"),
        ("other", "w2", "served", "stable"),
        ("other", "w3", "waiting", "waiting"),
    ]
    assert versions_text(rows).splitlines()[2].split()[:3] == [POLICY, "9", "v9"]


def test_a_topic_is_whole_when_no_offset_is_missing() -> None:
    assert is_whole([])
    assert is_whole([("releases", 0), ("rollouts", 0), ("releases", 1)])
    assert not is_whole([("releases", 0), ("rollouts", 4)])
    assert not is_whole([("releases", 0), ("releases", 2)])
