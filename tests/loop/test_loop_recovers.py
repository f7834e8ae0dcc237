"""The whole stack on real processes, hurt in mid-run: what was acknowledged must not be lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from console.demo_users import UserCounts
from console.evidence import all_evidence, ledger_lines, version_directories
from console.explain import explain_decision, explanation
from console.log_access import open_log
from console.releases import version_rows
from console.report import RunLog, run_log
from console.settling import Follower, learner_missing
from console.stack_file import ProcessEntry, StackFile, is_same_process, read_stack
from console.traceability import LINKS, is_traced, traceability
from contracts.broker import events_to_end
from contracts.events import Feedback
from contracts.heartbeat import read_heartbeat
from contracts.settings import Kafka, Settings
from contracts.topics import FEEDBACK
from learner.experience import USER_REWARD_MEAN
from simulator.desk import Desk
from simulator.run import Truth, read_truth
from tests.loop.running_stack import running_stack
from tests.until import until

pytestmark = pytest.mark.loop

INTERACTIONS = 400
USERS_SECONDS, REST_SECONDS, SPANS_SECONDS = 420.0, 240.0, 60.0


def write_settings(directory: Path, policy: Path) -> Path:
    product = dict(Desk().settings)
    settings: dict[str, Any] = {
        "state_dir": str(directory / "state"),
        "policy": {"model": str(policy)},
        "engine": {"kind": "transformers"},
        "gateway": {**product["gateway"], "port": 0},
        "streams": {**product["streams"], "window_seconds": 4.0},
        "learner": {"batch_samples": 24, "publish_every": 1},
        "gate": {"mode": "off"},  # crashes are tried here, not what a version must show
        "rollout": {
            "steps": [
                {
                    "weight": 0.4,
                    "min_canary_requests": 10,
                    "min_canary_users": 5,
                    "max_wait_seconds": 30.0,
                }
            ],
            "min_rewards": 1,
            "reward_margin": 2.0,
            "cooldown_seconds": 0.0,
            "publish_seconds": 0.5,
        },
    }
    path = directory / "headrace.yaml"
    path.write_bytes(msgspec.json.encode(settings))
    return path


def stack_of(settings: Settings) -> StackFile:
    stack = read_stack(settings.state_dir)
    assert stack is not None
    return stack


def process(settings: Settings, name: str) -> ProcessEntry:
    return next(entry for entry in stack_of(settings).processes if entry.name == name)


class Stack(msgspec.Struct, frozen=True):
    """A running ``headrace up`` and its settings."""

    settings: Settings
    path: Path


@pytest.fixture
def stack(tmp_path: Path, tiny_policy: Path) -> Iterator[Stack]:
    path = write_settings(tmp_path, tiny_policy)
    with running_stack(path) as settings:
        yield Stack(settings, path)


def start_users(settings: Settings, truth: Path) -> subprocess.Popen[bytes]:
    found = stack_of(settings)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "simulator", "run", "--users", "desk", "--seed", "3"),
            *("--interactions", str(INTERACTIONS), "--concurrency", "3"),
            *("--gateway", found.gateway, "--kafka", found.kafka, "--truth", str(truth)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def has_features(settings: Settings) -> bool:
    """Say whether the gateway has opened the feature store, which takes it some seconds."""
    beat = read_heartbeat(settings.state_dir, "gateway")
    return beat is not None and beat.ready and "feature" not in beat.note


def hurt(settings: Settings, name: str, number: signal.Signals) -> None:
    """End one process of the stack by the pid in its file, and see it come back as another."""
    before = process(settings, name)
    os.kill(before.pid, number)
    until(
        f"{name} starts again",
        lambda: process(settings, name).restarts > before.restarts,
        60.0,
    )


def rest(settings: Settings, kafka: Kafka, answered: int) -> RunLog:
    """Follow the log until every window is closed and the learner has read all; return it."""
    follower = Follower(kafka)

    def quiet() -> bool:
        follower.follow()
        complete = follower.decisions >= answered and not follower.open_windows()
        return complete and not learner_missing(settings, follower.samples)

    def state() -> str:
        learner = learner_missing(settings, follower.samples)
        return f"{follower.decisions} decisions, {follower.open_windows()} open, {learner}"

    try:
        until("the loop comes to rest", quiet, REST_SECONDS, state=state)
        return run_log(follower.events)
    finally:
        follower.close()


def test_the_loop_recovers_when_worker_learner_and_broker_die_in_mid_run(
    stack: Stack, tmp_path: Path
) -> None:
    settings, truth = stack.settings, tmp_path / "truth.jsonl"
    until("features in the gateway", lambda: has_features(settings), REST_SECONDS)
    users = start_users(settings, truth)
    try:

        def answered(count: int) -> Callable[[], bool]:
            return lambda: truth.exists() and len(truth.read_bytes().splitlines()) >= count

        until("the first answers", answered(60), USERS_SECONDS)
        hurt(settings, "streams-1", signal.SIGKILL)
        until("answers without the worker", answered(140), USERS_SECONDS)
        hurt(settings, "learner", signal.SIGKILL)
        killed_at = datetime.now(UTC)
        until("answers without the learner", answered(220), USERS_SECONDS)
        hurt(settings, "broker", signal.SIGTERM)
        users.wait(USERS_SECONDS)
    finally:
        users.kill()
        users.wait()
    assert users.stdout is not None
    *said, summary = users.stdout.read().decode().splitlines()
    print(*said, sep="\n")
    counts = msgspec.json.decode(summary, type=UserCounts)
    users.stdout.close()
    assert counts.failed_requests == 0
    lines = read_truth(truth)
    kafka = msgspec.structs.replace(settings.kafka, bootstrap=stack_of(settings).kafka)
    log = rest(settings, kafka, len(lines))
    nothing_acknowledged_is_lost(log, lines, kafka, counts)
    nothing_is_learned_twice(settings, log)
    assert {name: process(settings, name).restarts for name in ("streams-1", "learner")} == {
        "streams-1": 1,
        "learner": 1,
    }
    every_decision_is_explained(settings, log)
    serving_and_learning_saw_the_same(settings, log)
    every_decision_is_traced(settings, [d.id for d in log.decisions if d.time > killed_at])


def nothing_acknowledged_is_lost(
    log: RunLog, truth: list[Truth], kafka: Kafka, counts: UserCounts
) -> None:
    answered = {line.decision_id for line in truth}
    assert len(answered) == INTERACTIONS
    assert {decision.id for decision in log.decisions} == answered
    first = Counter(reward.decision_id for reward in log.rewards if reward.revision == 0)
    assert first == dict.fromkeys(answered, 1)
    events = events_to_end(kafka, (FEEDBACK,), "test-loop")
    feedback = {event.id for _, event in events if isinstance(event, Feedback)}
    # What the producer could not confirm while the broker was away may have arrived all the same.
    assert counts.feedback <= len(feedback) <= counts.feedback + counts.failed_feedback
    assert counts.failed_feedback <= 5


def nothing_is_learned_twice(settings: Settings, log: RunLog) -> None:
    directories = version_directories(settings.state_dir / "versions")
    lines = [line for path in directories.values() for line in ledger_lines(path)]
    read = Counter(line["sample_id"] for line in lines)
    assert read
    assert set(read.values()) == {1}
    assert set(read) <= {sample.id for sample in log.samples}
    rows = version_rows([*log.releases, *log.rollouts])
    assert len({release.id for release in log.releases}) == len(rows) - 1 >= 1


def every_decision_is_explained(settings: Settings, log: RunLog) -> None:
    with open_log(settings) as kafka:
        found = traceability(all_evidence(kafka, settings))
        learned = explain_decision(kafka, settings, log.samples[0].decision_id)
    assert found.decisions == INTERACTIONS
    assert found.lacking == dict.fromkeys(LINKS, ())
    assert (found.broken, found.cut) == ((), 0)
    assert learned.learned[0].outcome["decision_id"] == learned.decision.id
    assert {span.process for span in learned.spans} >= {"gateway", "engine"}


def serving_and_learning_saw_the_same(settings: Settings, log: RunLog) -> None:
    """The features that a decision was made with are those that the learner used for it."""
    served = {
        decision.id: decision.features[USER_REWARD_MEAN].value
        for decision in log.decisions
        if decision.features
    }
    assert served
    directories = version_directories(settings.state_dir / "versions")
    lines = [line for path in directories.values() for line in ledger_lines(path)]
    used = {line["decision_id"]: line["user_reward_mean"] for line in lines}
    both = used.keys() & served.keys()
    assert {name: used[name] for name in both} == {name: served[name] for name in both}


def every_decision_is_traced(settings: Settings, after_the_kills: list[str]) -> None:
    """Spans that a killed process had not written yet are gone; all later ones get written."""
    assert after_the_kills

    def untraced() -> list[str]:
        with open_log(settings) as kafka:
            evidence = all_evidence(kafka, settings)
        return [one for one in after_the_kills if not is_traced(explanation(evidence, one))]

    until("all spans are written", lambda: not untraced(), SPANS_SECONDS, state=untraced)


def test_down_stops_the_stack_and_its_log_can_still_be_asked(stack: Stack, tmp_path: Path) -> None:
    settings, truth = stack.settings, tmp_path / "truth.jsonl"
    users = start_users(settings, truth)
    until("the first answer", lambda: truth.exists() and truth.read_bytes(), USERS_SECONDS)
    users.terminate()
    users.wait()
    assert users.stdout is not None
    users.stdout.close()
    decision = read_truth(truth)[0].decision_id
    kafka = msgspec.structs.replace(settings.kafka, bootstrap=stack_of(settings).kafka)
    follower = Follower(kafka)

    def logged() -> bool:
        follower.follow()
        return follower.decisions > 0

    until("the decision in the log", logged, 60.0)
    follower.close()
    before = stack_of(settings)
    command = [sys.executable, "-m", "console", "--settings", str(stack.path)]
    subprocess.run([*command, "down"], check=True, stdout=subprocess.DEVNULL)
    assert not any(is_same_process(entry.pid, entry.started) for entry in before.processes)
    answer = subprocess.run(
        [*command, "explain", decision], check=True, capture_output=True, text=True
    )
    assert f"decision {decision}" in answer.stdout
