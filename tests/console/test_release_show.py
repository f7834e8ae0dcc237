"""``headrace releases``: the list, and one version taken apart."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from console.main import main
from contracts.ids import NewId
from contracts.manifest import hash_files, read_manifest, sign_manifest, write_manifest
from contracts.settings import Kafka
from contracts.signing import signing_key
from learner.directory import PARTIAL_PREFIX
from tests.console.story import START, Story, write_version
from tests.signing_keys import new_key

FATES = (
    ("used", "search", 1.0, 0.3),
    ("used", "search", -0.5, -0.2),
    ("judge", "search", 0.4, 0.0),
    ("stale", "refuse", 0.5, 0.0),
    ("superseded", "search", -1.0, 0.0),
    ("used", "refuse", 1.0, 0.1),
)
LEDGER = [
    {
        "sample_id": f"s-{n}",
        "decision_id": "d-0" if outcome == "superseded" else f"d-{n}",
        "user_id": f"u-{n}",
        "offset": 10 + n,
        "outcome": outcome,
        "user_reward_mean": None,
        "action": action,
        "reward": reward,
        "violation": n == 1,
        "coefficient": coefficient,
        "correction": {1: "safe-answer", 3: "safe-answer", 5: "person"}.get(n, ""),
    }
    for n, (outcome, action, reward, coefficient) in enumerate(FATES)
]


def _run(state_dir: Path, *words: str, **environment: str) -> Result:
    environment = {"HEADRACE_STATE_DIR": str(state_dir), **environment}
    return CliRunner().invoke(main, ["releases", *words], env=environment)


@pytest.fixture
def version(state_dir: Path) -> str:
    """A signed version with a ledger, as the learner writes it."""
    return _signed(state_dir, LEDGER)


def _signed(
    state_dir: Path, ledger: list[dict[str, Any]], payments: Sequence[dict[str, Any]] = ()
) -> str:
    key = signing_key(new_key(state_dir))
    made = write_version(state_dir / "versions", 4, "base", ledger, payments)
    directory = state_dir / "versions" / "assistant" / made
    _, manifest = read_manifest(directory)
    again = msgspec.structs.replace(manifest, users=3, oldest_feedback_time=START)
    named = write_manifest(directory, again)
    sign_manifest(directory, key)
    directory.rename(directory.with_name(named))
    return named


def _view(state_dir: Path, *words: str) -> tuple[int, dict[str, Any]]:
    found = _run(state_dir, "show", *words, "--json")
    view: dict[str, Any] = json.loads(found.output)
    return found.exit_code, view


def test_a_version_is_shown_with_its_offsets_samples_users_and_sound_files(
    state_dir: Path, version: str
) -> None:
    code, view = _view(state_dir, version[:6])
    assert (code, view["version"], view["fault"]) == (0, version, "")
    assert view["outcomes"] == {"used": 3, "judge": 1, "stale": 1, "superseded": 1}
    assert view["manifest"]["users"] == 3
    assert [(file["name"], file["state"]) for file in view["files"]] == [("ledger.jsonl", "sound")]
    assert view["corrections"] == {"safe-answer": 2, "person": 1}
    assert view["ledger"] == []

    rows = _run(state_dir, "show", version[:6], "--samples").output.splitlines()
    words = [row.split() for row in rows]
    assert ["offsets", "of", "samples/0", "0", "to", "63"] in words
    assert ["judge", "1"] in words
    assert ["read", "in", "all", "6"] in words
    assert ["corrected", "to", "the", "safe", "answer", "2"] in words
    assert ["users", "who", "taught", "it", "3"] in words
    beginning = ["offset", "sample", "decision", "user", "action", "outcome", "reward"]
    assert [*beginning, "coefficient", "correction", "user", "mean"] in words
    used = ["10", "s-0", "d-0", "u-0", "search", "used", "+1.000", "+0.3000", "-", "-"]
    stale = ["13", "s-3", "d-3", "u-3", "refuse", "stale", "+0.500", "-", "safe-answer", "-"]
    judge = ["12", "s-2", "d-2", "u-2", "search", "judge", "+0.400", "-", "-", "-"]
    assert all(row in words for row in (used, stale, judge))
    assert "id, files and signature are sound" in rows
    assert "it did not come before the gate yet" in rows


def test_rewards_violations_and_what_was_taught_are_told_action_by_action(
    state_dir: Path, version: str
) -> None:
    _, view = _view(state_dir, version)
    search, refuse = view["actions"]
    assert (search["action"], search["samples"]) == ("search", 3)  # superseded: it holds no more
    assert search["reward_mean"] == pytest.approx(0.3)
    assert (search["decisions"], search["violation_rate"]) == (3, pytest.approx(1 / 3))
    assert search["taught"] == pytest.approx(0.1)
    assert (refuse["samples"], refuse["violation_rate"]) == (2, 0.0)

    words = [row.split() for row in _run(state_dir, "show", version).output.splitlines()]
    assert ["search", "3", "+0.300", "3", "33.3%", "+0.100"] in words


def test_what_was_put_right_of_earlier_samples_is_told(state_dir: Path) -> None:
    paid: list[dict[str, Any]] = [
        {"sample_id": "s-90", "decision_id": "d-90", "offset": 3, "user_id": "u-1"}
        | {"action": "search", "coefficient": -0.4},
        {"sample_id": "s-91", "decision_id": "d-91", "offset": 4, "user_id": "u-2"}
        | {"action": "pay", "coefficient": 0.0, "undone": True},
    ]
    version = _signed(state_dir, LEDGER, paid)
    code, view = _view(state_dir, version)
    assert (code, view["put_right"], view["payments"]) == (0, 2, [])
    taught = {row["action"]: (row["taught"], row["decisions"]) for row in view["actions"]}
    assert taught["search"] == (pytest.approx(0.1 - 0.4), 3)
    assert taught["pay"] == (0.0, 0)
    assert _view(state_dir, version, "--samples")[1]["payments"] == paid

    words = [
        row.split() for row in _run(state_dir, "show", version, "--samples").output.split("\n")
    ]
    assert ["earlier", "ones", "put", "right", "2"] in words
    assert ["3", "s-90", "d-90", "u-1", "search", "-0.4000", "-"] in words
    undone = ["4", "s-91", "d-91", "u-2", "pay", "+0.0000", "let", "go:", "back"]
    assert undone in [row[:9] for row in words]
    assert ["pay", "0", "-", "0", "-", "+0.000"] in words


def test_violations_that_nobody_rated_are_counted_and_what_they_taught(state_dir: Path) -> None:
    kinds = ["used"] * 5 + ["priced"] * 2 + ["no-reward"] * 3
    answers: list[dict[str, Any]] = [
        {
            "sample_id": f"s-{n}",
            "decision_id": f"d-{n}",
            "offset": n,
            "outcome": outcome,
            "user_reward_mean": None,
            "action": "answer",
            "reward": 1.0 if outcome == "used" else 0.0,
            "violation": outcome != "used",
            "coefficient": {"used": 0.1, "priced": -0.2}.get(outcome, 0.0),
        }
        for n, outcome in enumerate(kinds)
    ]
    silent = {**answers[-1], "decision_id": "d-10", "action": "refuse", "violation": False}
    version = _signed(state_dir, [*answers, silent])
    _, view = _view(state_dir, version)
    answer, refuse = view["actions"]
    assert (answer["samples"], answer["reward_mean"], answer["decisions"]) == (5, 1.0, 10)
    assert (answer["violation_rate"], answer["taught"]) == (0.5, pytest.approx(0.1))
    assert (refuse["samples"], refuse["reward_mean"], refuse["decisions"]) == (0, None, 1)

    shown = _run(state_dir, "show", version, "--samples").output.splitlines()
    words = [row.split() for row in shown]
    assert ["answer", "5", "+1.000", "10", "50.0%", "+0.100"] in words
    assert ["refuse", "0", "-", "1", "0.0%", "+0.000"] in words
    assert ["5", "s-5", "d-5", "-", "answer", "priced", "-", "-0.2000", "-", "-"] in words
    assert ["7", "s-7", "d-7", "-", "answer", "no-reward", "-", "-", "-", "-"] in words


def test_a_changed_a_missing_and_an_added_file_are_told_apart(
    state_dir: Path, version: str
) -> None:
    directory = state_dir / "versions" / "assistant" / version
    (directory / "added.safetensors").write_bytes(b"")
    (directory / "ledger.jsonl").write_bytes(b"{")
    code, view = _view(state_dir, version)
    assert code == 1
    assert {f["name"]: f["state"] for f in view["files"]} == {
        "added.safetensors": "unexpected",
        "ledger.jsonl": "differs",
    }
    assert "differ from the manifest" in view["fault"]
    (directory / "ledger.jsonl").unlink()
    assert {f["name"]: f["state"] for f in _view(state_dir, version)[1]["files"]} == {
        "added.safetensors": "unexpected",
        "ledger.jsonl": "missing",
    }


@pytest.mark.parametrize("damage", [b"null\n", b'{"coefficient":null}\n', b"\xff\xfe", b"[" * 9999])
def test_a_ledger_that_was_changed_is_not_read(
    state_dir: Path, version: str, damage: bytes
) -> None:
    directory = state_dir / "versions" / "assistant" / version
    (directory / "ledger.jsonl").write_bytes(damage)
    code, view = _view(state_dir, version, "--samples")
    assert (code, view["outcomes"], view["ledger"]) == (1, {}, [])
    assert [f["state"] for f in view["files"]] == ["differs"]
    _, manifest = read_manifest(directory)
    again = msgspec.structs.replace(manifest, files=hash_files(directory))
    write_manifest(directory, again)  # as one does who wants it to be believed
    code, view = _view(state_dir, version, "--samples")
    assert (code, view["outcomes"], view["ledger"]) == (1, {}, [])
    assert "expected" in view["fault"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_in_a_version_is_told_without_waiting_for_it(
    state_dir: Path, version: str, make: Callable[[Path], None]
) -> None:
    path = state_dir / "versions" / "assistant" / version / "ledger.jsonl"
    path.unlink()
    make(path)
    found = _run(state_dir, "show", version)
    assert found.exit_code == 1
    assert "Traceback" not in found.output
    assert any(word in found.output for word in ("missing", "neither a regular file"))


def test_ids_in_a_ledger_cannot_steer_the_terminal(state_dir: Path) -> None:
    hostile = {**LEDGER[0], "user_id": "\x1b[2J\x1b]0;own\x07bob\n\x9b1m", "action": "a\x1bb"}
    version = _signed(state_dir, [hostile])
    shown = _run(state_dir, "show", version, "--samples").output
    assert all(line.isprintable() for line in shown.split("\n"))
    assert r"\x1b[2J\x1b]0;own\x07bob\n\x9b1m" in shown


def test_a_version_that_nobody_trusted_signed_is_not_sound(state_dir: Path, version: str) -> None:
    (state_dir / "keys" / "learner.pub").unlink()
    found = _run(state_dir, "show", version)
    assert found.exit_code == 1
    assert "NOT SOUND" in found.output
    assert "not trusted" in found.output


def test_what_names_no_version_or_several_is_said_with_what_there_is(
    state_dir: Path, version: str
) -> None:
    for given, said in (
        ("xyz", f"begins with 'xyz'; there are 1, such as {version[:12]}"),
        ("base", "'base' is the model itself"),
        ("", "begins with ''"),
    ):
        found = _run(state_dir, "show", given)
        assert found.exit_code == 2
        assert said in " ".join(found.output.split())
    write_version(state_dir / "versions", 5, version, [])
    nothing_in_common = _run(state_dir, "show", "")
    assert "there are 2" in nothing_in_common.output


def test_what_a_crash_left_unfinished_is_no_version(state_dir: Path, version: str) -> None:
    root = state_dir / "versions" / "assistant"
    shutil.copytree(root / version, root / f"{PARTIAL_PREFIX}7")
    found = _run(state_dir, "show", PARTIAL_PREFIX)
    assert found.exit_code == 2
    assert f"there are 1, such as {version[:12]}" in " ".join(found.output.split())


def test_releases_alone_lists_as_it_always_did(
    state_dir: Path, story: Story, kafka: Kafka, new_id: NewId
) -> None:
    environment = {
        "HEADRACE_KAFKA__BOOTSTRAP": kafka.bootstrap,
        "HEADRACE_KAFKA__PREFIX": kafka.prefix,
    }
    alone, listed = (_run(state_dir, *words, **environment) for words in ((), ("list",)))
    assert alone.exit_code == listed.exit_code == 0
    assert alone.output == listed.output
    assert story.version[:12] in alone.output
    as_json = [
        _run(state_dir, *words, **environment) for words in (("--json",), ("list", "--json"))
    ]
    assert json.loads(as_json[0].output) == json.loads(as_json[1].output)
    assert _run(state_dir, "--json", "list", **environment).exit_code == 2
