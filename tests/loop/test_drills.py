"""Every kind of bad version, put into one real stack: refused or rolled back, no request failed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from console.drill_kinds import Kind
from console.drill_report import DrillReport, DrillRow
from console.log_access import open_log
from console.rollout_history import read_history
from console.rollout_view import read_state
from contracts.settings import Settings, load_settings
from serving.rollout_guardrails import GUARDRAILS
from simulator.desk import Desk
from tests.loop.running_stack import running_stack

pytestmark = pytest.mark.loop

DRILL_SECONDS = 240.0
PLAN = {
    "steps": [
        {
            "weight": 0.3,
            "min_canary_requests": 5000,
            "min_canary_users": 50,
            "max_wait_seconds": 10.0,
        }
    ],
    "first_token_limit_seconds": 1.0,
    "answer_limit_seconds": 2.0,
    "cooldown_seconds": 0.0,
    "publish_seconds": 0.3,
}
"""One step that nothing passes in a drill's time: what is not found out goes back for its time.

A late answer counts whether it was streamed or not: by its first token alone half as many users
speak, too few on a busy machine."""

Drill = Callable[..., tuple[DrillReport, int]]


def write_settings(directory: Path, policy: Path) -> Path:
    product = dict(Desk().settings)
    settings: dict[str, Any] = {
        "state_dir": str(directory / "state"),
        "policy": {"model": str(policy)},
        "engine": {"kind": "transformers", "faults": True},
        "gateway": {**product["gateway"], "port": 0},
        "streams": {**product["streams"], "window_seconds": 4.0},
        "learner": {"batch_samples": 100_000},
        "gate": {"mode": "enforce", "allow_drills": True},
        "rollout": PLAN,
    }
    path = directory / "headrace.yaml"
    path.write_bytes(msgspec.json.encode(settings))
    return path


@pytest.fixture(scope="module")
def desk_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that can be taught in a few steps: the demo's size, a quarter of its training."""
    from learner.warm_start import Demonstration, Recipe, make_policy

    raw = list(islice(Desk().demonstrations(0), 1500))
    return make_policy(
        msgspec.convert(raw, list[Demonstration]),
        tmp_path_factory.mktemp("policy") / "desk",
        seed=0,
        steps=150,
        recipe=Recipe(batch=32, threads=1),
        progress=False,
    )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, desk_policy: Path) -> Iterator[Path]:
    """The settings file of a running ``headrace up``; one stack for all drills."""
    directory = tmp_path_factory.mktemp("drills")
    path = write_settings(directory, desk_policy)
    with running_stack(path):
        yield path


@pytest.fixture
def drill(stack: Path) -> Drill:
    """Runs ``headrace drill KIND``; returns its report and its exit code."""

    def run(kind: Kind, *options: str) -> tuple[DrillReport, int]:
        command = [sys.executable, "-m", "console", "--settings", str(stack), "drill", kind]
        command += ["--users", "80", "--rate", "10", "--seconds", "60", "--json", *options]
        done = subprocess.run(command, capture_output=True, timeout=DRILL_SECONDS, check=False)
        print(done.stderr.decode())
        assert done.stdout, done.stderr.decode()
        return msgspec.json.decode(done.stdout, type=DrillReport), done.returncode

    return run


def settings_of(path: Path) -> Settings:
    return load_settings(path, {})


def stopped(found: tuple[DrillReport, int], ended: str) -> tuple[DrillRow, ...]:
    """Check what every drill must show, and return its rows."""
    report, code = found
    assert {row.ended for row in report.rows} == {ended}, report
    assert (report.failed_requests, code) == (0, 0), report
    assert report.asked > 0
    return report.rows


def test_versions_that_were_tampered_with_are_refused_before_they_are_loaded(drill: Drill) -> None:
    changed, unsigned = stopped(drill("tampered"), "refused")
    assert "adapter_model.safetensors" in changed.reason
    assert "unsigned" in unsigned.reason
    for row in (changed, unsigned):
        assert (row.by, row.users_exposed, row.shadow_answers) == ("verification", 0, 0)


@pytest.mark.parametrize("kind", ["unsafe", "garbage"])
def test_a_bad_version_does_not_pass_the_gate(drill: Drill, kind: Kind) -> None:
    [row] = stopped(drill(kind), "refused")
    assert (row.by, row.users_exposed) == ("gate", 0)


def test_an_unsafe_version_that_passed_the_gate_is_rolled_back_by_the_canary(drill: Drill) -> None:
    [row] = stopped(drill("unsafe", "--skip-gate"), "rolled-back")
    assert row.by in ("safety", "tripwire")
    assert row.answers >= row.kept_back_answers > 0


def test_garbage_that_passed_the_gate_goes_back_for_its_time_as_a_good_version_would(
    drill: Drill,
) -> None:
    """Noise breaks no rule: short of a guardrail it is only never promoted. The gate finds it."""
    [row] = stopped(drill("garbage", "--skip-gate"), "rolled-back")
    assert row.users_exposed > 0
    assert row.by in ("inconclusive", "reward", *GUARDRAILS), row.reason


def test_a_slow_version_is_rolled_back(drill: Drill) -> None:
    [row] = stopped(drill("slow"), "rolled-back")
    assert row.by == "slow"


def test_a_version_that_crashes_is_rolled_back_and_another_answers_its_users(
    drill: Drill, stack: Path
) -> None:
    [row] = stopped(drill("crash"), "rolled-back")
    assert row.by in ("error", "tripwire")
    assert row.replaced_answers > 0
    settings = settings_of(stack)
    with open_log(settings) as kafka:
        state = read_state(kafka, settings.policy.name)
        lines = read_history(kafka, settings.policy.name)
    assert state is not None
    assert (state.stable.version, state.candidate) == ("base", None)
    assert any(line.version == row.version and line.action == "rolled-back" for line in lines)
