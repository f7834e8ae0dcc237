"""What children of the console are given: the secret only where it is needed, the base by seed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from console import up
from console.child import Child, Program
from console.child_environment import (
    FEEDBACK_SECRET,
    SIGNING_KEY_FILE,
    inherited_environment,
    public_settings,
)
from console.demo_policy import make_demonstrations
from console.model import local_model
from console.stack import resolve, stack_programs
from console.stack_file import read_stack, stack_path, start_time
from console.waiting import Shown, wait_until
from contracts.errors import UnavailableError
from contracts.settings import Engine, Policy, Segment, Settings, load_settings
from contracts.signing import key_id, signing_key, trusted_keys


def test_only_gateway_and_streams_get_the_feedback_secret(
    state_dir: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FEEDBACK_SECRET, "s" * 64)
    given = Settings(
        state_dir=state_dir, engine=Engine(kind="transformers"), policy=Policy(model="/m")
    )
    settings = resolve(given, shown)
    holders = [
        program.name
        for program in stack_programs(given, settings, 2)
        if program.environment.get(FEEDBACK_SECRET)
    ]
    assert holders == ["streams-1", "streams-2", "gateway"]


def test_only_the_learner_knows_where_the_signing_key_lies(state_dir: Path, shown: Shown) -> None:
    given = Settings(
        state_dir=state_dir, engine=Engine(kind="transformers"), policy=Policy(model="/m")
    )
    settings = resolve(given, shown)
    stack = {program.name: program.environment for program in stack_programs(given, settings, 1)}
    assert [name for name, known in stack.items() if SIGNING_KEY_FILE in known] == ["learner"]
    its_key = signing_key(load_settings(environment=stack["learner"]))
    trusted = trusted_keys(load_settings(environment=stack["rollout"]))
    assert list(trusted) == [key_id(its_key.public_key())]
    assert resolve(given, shown).learner == settings.learner  # made once


def test_settings_for_all_hold_no_secret(
    state_dir: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FEEDBACK_SECRET, "s" * 64)
    settings = resolve(Settings(state_dir=state_dir, engine=Engine(kind="transformers")), shown)
    assert FEEDBACK_SECRET not in inherited_environment() | public_settings(settings)


def test_each_policy_has_a_learner_and_a_controller_of_its_own(
    state_dir: Path, shown: Shown
) -> None:
    engine = Engine(kind="transformers", max_adapters=5)
    segments = (Segment(policy="german", language="de"), Segment(policy="german", language="at"))
    given = Settings(state_dir=state_dir, engine=engine, segments=segments)
    programs = {p.name: p.command[2:] for p in stack_programs(given, resolve(given, shown), 1)}
    assert programs["learner"] == ("learner",)
    assert programs["learner.german"] == ("learner", "--policy", "german")
    assert programs["rollout"] == ("serving", "rollout")
    assert programs["rollout.german"] == ("serving", "rollout", "--policy", "german")
    assert sum(name.startswith(("learner", "rollout")) for name in programs) == 4


def test_a_child_does_not_inherit_the_feedback_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    monkeypatch.setenv(FEEDBACK_SECRET, "s" * 64)
    code = "import os; print(sorted(name for name in os.environ if name.startswith('HEADRACE_')))"
    program = Program(
        name="child",
        command=(sys.executable, "-c", code),
        missing=lambda _pid: "",
        environment={"HEADRACE_OTHER": "1"},
    )
    child = Child(program, tmp_path)
    child.start()
    wait_until("the child", lambda: "runs" if child.exit_code() is None else "", 20.0, shown)
    assert "HEADRACE_OTHER" in child.last_lines()
    assert FEEDBACK_SECRET not in child.last_lines()


def test_demonstrations_follow_the_seed(state_dir: Path, tmp_path: Path, shown: Shown) -> None:
    settings = Settings(state_dir=state_dir)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_demonstrations(settings, "desk", seed, tmp_path / name, shown)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_model_directory_is_used_as_it_is(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_model("models/small", shown) == str(tmp_path / "models" / "small")


def test_a_model_that_cannot_be_had_is_named_with_the_cure(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"'nobody/nothing' cannot be fetched.*directory"):
        local_model("nobody/nothing", shown)
    with pytest.raises(UnavailableError, match="cannot be fetched"):
        local_model("not a name", shown)
    with pytest.raises(UnavailableError, match="is no directory"):
        local_model("./missing", shown)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b'{"phase": "\xff"}', b'["a"]'])
def test_a_stack_file_that_cannot_be_read_counts_as_none(state_dir: Path, content: bytes) -> None:
    stack_path(state_dir).parent.mkdir(parents=True)
    stack_path(state_dir).write_bytes(content)
    assert read_stack(state_dir) is None


def test_a_detached_start_waits_longer_than_its_programs_may_take(
    state_dir: Path, shown: Shown
) -> None:
    given = Settings(state_dir=state_dir, engine=Engine(kind="transformers"))
    ends: dict[str, float] = {}
    for program in stack_programs(given, resolve(given, shown), 2):
        before = max((ends[name] for name in program.needs), default=0.0)
        ends[program.name] = before + program.start_seconds
    assert 1.2 * max(ends.values()) < up.START_SECONDS


def test_a_detached_start_that_takes_too_long_is_stopped(
    state_dir: Path, shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "console"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.chdir(tmp_path)  # `python -m console` finds this slow one first
    monkeypatch.setattr(up, "START_SECONDS", 1.0)
    with pytest.raises(UnavailableError, match="was stopped"):
        up.detach(["up"], state_dir, shown)
    stopped = re.search(
        r"stopping what was started \(pid (\d+)\)", (tmp_path / "shown.txt").read_text()
    )
    assert stopped is not None
    assert start_time(int(stopped[1])) == 0
