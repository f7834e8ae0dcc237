from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from console.demo_report import Measured, is_whole, make_report
from console.demo_settings import DemoPolicy, demo_settings, merge
from console.plot import plot_run
from console.releases import version_rows
from console.report import freshness, quantiles, run_figures, run_log, stable_version
from console.traceability import Traceability
from contracts.events import (
    Assignment,
    Candidate,
    Decision,
    Event,
    Message,
    Release,
    Reward,
    Rollout,
    Safety,
    Sample,
    Sampling,
    Timings,
)
from contracts.settings import Kafka, Settings, load_settings

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def served(name: str, version: str, seconds: float) -> Decision:
    return Decision(
        id=name,
        time=at(seconds),
        session_id="s",
        user_id="u",
        assignment=Assignment(policy="p", policy_version=version),
        messages=(),
        answer=Message(role="assistant", content="x"),
        action="answer",
        text="x",
        sampling=Sampling(),
        finish_reason="stop",
        timings=Timings(),
        engine="test",
    )


def sampled(name: str, decision_id: str, seconds: float) -> Sample:
    return Sample(
        id=name,
        time=at(seconds),
        decision_id=decision_id,
        reward_id=f"r-{name}",
        session_id="s",
        user_id="u",
        assignment=Assignment(policy="p", policy_version="base"),
        messages=(),
        action="answer",
        prompt_token_ids=(),
        token_ids=(),
        logprobs=(),
        temperature=1.0,
        reward=0.5,
        violation=False,
        decided_at=at(0),
        feedback_time=at(seconds),
    )


def release(version: str, sequence: int, parent: str) -> Release:
    return Release(
        id=f"release-{version}",
        time=at(sequence),
        policy="p",
        version=version,
        sequence=sequence,
        parent=parent,
        location="",
        newest_feedback_time=at(0),
    )


def rollout(epoch: int, phase: str, stable: str, candidate: str) -> Rollout:
    return Rollout(
        id=f"rollout-{epoch}",
        time=at(epoch),
        policy="p",
        epoch=epoch,
        phase=phase,  # type: ignore[arg-type] # the tests write phases as plain text
        stable=Candidate(version=stable),
        candidate=Candidate(version=candidate) if phase == "canary" else None,
        judged=candidate,
    )


def a_run() -> list[Event]:
    """Version a is rolled back before it serves; b, made from it, is promoted."""
    return [
        served("d1", "base", 0),
        served("d2", "base", 1),
        served("d3", "b", 60),
        served("d4", "b", 61),
        served("d4", "b", 61),
        sampled("s1", "d1", 10),
        sampled("s2", "d2", 40),
        release("a", 1, "base"),
        release("b", 2, "a"),
        rollout(1, "canary", "base", "a"),
        rollout(2, "rolled-back", "base", "a"),
        rollout(3, "canary", "base", "b"),
        rollout(4, "promoted", "b", "b"),
    ]


LEDGERS = {
    "a": [
        {"sample_id": "s1", "outcome": "used"},
        {"sample_id": "s0", "outcome": "no-logprobs"},
    ],
    "b": [{"sample_id": "s2", "outcome": "used"}],
}


def test_quantiles_are_interpolated() -> None:
    found = quantiles([4.0, 1.0, 3.0, 2.0])
    assert (found.count, found.p50) == (4, 2.5)
    assert found.p95 == pytest.approx(3.85)
    assert quantiles([]).p50 is None


def test_what_was_never_served_is_later_than_any() -> None:
    found = quantiles([1.0, math.inf, 3.0])
    assert (found.count, found.finite, found.p50, found.p95) == (3, 2, 3.0, None)
    unserved = {**LEDGERS, "c": [{"sample_id": "s1", "outcome": "used"}]}
    assert freshness(run_log(a_run()), unserved) == [50.0, 20.0, math.inf]


def test_freshness_counts_until_a_descendant_serves_when_the_version_itself_never_did() -> None:
    assert freshness(run_log(a_run()), LEDGERS) == [50.0, 20.0]


def test_the_figures_follow_from_the_log_and_the_ledgers() -> None:
    log = run_log(a_run())
    figures = run_figures(log, LEDGERS)
    assert figures.decisions_logged == 4
    assert figures.duplicate_decisions == 1
    assert (figures.samples_learned, figures.distinct_samples_learned) == (2, 2)
    assert (figures.releases, figures.promoted, figures.rolled_back) == (2, 1, 1)
    assert figures.versions_served == 1
    assert [(row.version, row.phase, row.decisions) for row in figures.versions] == [
        ("base", "base", 2),
        ("a", "rolled-back", 0),
        ("b", "promoted", 2),
    ]
    assert stable_version(log) == "b"


def test_a_release_that_a_newer_one_overtook_is_superseded() -> None:
    events = [release(v, n, "base") for n, v in enumerate("abc", start=1)]
    rows = version_rows([*events, rollout(1, "canary", "base", "b")])
    assert [row.phase for row in rows] == ["base", "superseded", "canary", "waiting"]


def test_a_sample_learned_twice_is_seen() -> None:
    twice = {**LEDGERS, "b": [*LEDGERS["b"], {"sample_id": "s1", "outcome": "used"}]}
    figures = run_figures(run_log(a_run()), twice)
    assert (figures.samples_learned, figures.distinct_samples_learned) == (3, 2)


EXPLAINED = Traceability(
    decisions=4,
    explained=4,
    traced=4,
    lacking={},
    samples=2,
    learned=2,
    audit_records=9,
    audit_chains=2,
    cut=0,
    broken=(),
)


def test_a_run_is_whole_when_nothing_failed_or_got_lost_or_was_learned_twice() -> None:
    measured = Measured(
        version="base",
        prompts=2,
        utility=0.0,
        utility_se=0.1,
        violation_rate=0.0,
        violation_rate_se=0.0,
        right_action=0.5,
        right_action_se=0.1,
        right_by_intent={},
    )

    def whole(
        ledgers: dict[str, list[dict[str, str]]],
        interactions: int,
        failed: int,
        traced: Traceability = EXPLAINED,
    ) -> bool:
        report = make_report(
            users="desk",
            seed=0,
            interactions=interactions,
            failed_requests=failed,
            before=measured,
            after=measured,
            figures=run_figures(run_log(a_run()), ledgers),
            traced=traced,
            engine="test",
            kafka="test",
            stages={},
        )
        return is_whole(report)

    twice = {**LEDGERS, "b": [*LEDGERS["b"], {"sample_id": "s1", "outcome": "used"}]}
    assert whole(LEDGERS, 4, 0)
    assert not whole(LEDGERS, 4, 1)
    assert not whole(LEDGERS, 5, 0)
    assert not whole(twice, 4, 0)
    assert not whole(LEDGERS, 4, 0, replace(EXPLAINED, explained=3))
    assert not whole(LEDGERS, 4, 0, replace(EXPLAINED, broken=("x: sequence 2, expected 1",)))


def test_a_run_is_drawn(tmp_path: Path) -> None:
    about: dict[str, Any] = {
        "session_id": "s",
        "user_id": "u",
        "decision_id": "d1",
        "decided_at": at(0),
    }
    assignment = Assignment(policy="p", policy_version="base")
    judged: list[Event] = [
        Safety(id="f", time=at(0), assignment=assignment, violation=True, risk=1.0, **about),
        Reward(id="r", time=at(1), assignment=assignment, status="final", value=0.5, **about),
    ]
    log = run_log([*a_run(), *judged])
    plot_run(log, run_figures(log, LEDGERS).versions, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_settings_lie_over_each_other_and_the_reward_is_replaced_whole() -> None:
    below = {"a": {"x": 1, "y": 2}, "s": {"reward": {"rating": 1, "report": 2}}}
    above = {"a": {"y": 3}, "s": {"reward": {"rating": 5}}}
    assert merge(below, above) == {"a": {"x": 1, "y": 3}, "s": {"reward": {"rating": 5}}}


def test_a_run_keeps_the_given_broker_but_has_topics_of_its_own(tmp_path: Path) -> None:
    given = Settings(kafka=Kafka(bootstrap="broker:9092", prefix="mine-"))
    product = {"streams": {"window_seconds": 3.0, "safe_actions": ["refuse"]}}
    found = demo_settings(
        given, tmp_path / "run-1", "transformers", DemoPolicy(model="/model"), product
    )
    assert found.kafka.bootstrap == "broker:9092"
    assert found.kafka.prefix == "mine-run-1-"
    assert found.streams.window_seconds == 3.0
    assert found.engine.kind == "transformers"
    assert found.rollout.steps[-1].weight == 0.5


def test_a_given_setting_wins_over_those_of_the_demo_and_the_product(tmp_path: Path) -> None:
    environment = {
        "HEADRACE_LEARNER__BATCH_SAMPLES": "16",
        "HEADRACE_STREAMS__WINDOW_SECONDS": "5",
        "HEADRACE_ENGINE__PORT": "9001",
        "HEADRACE_GATEWAY__FEEDBACK_SECRET": "s" * 64,
    }
    empty = tmp_path / "headrace.yaml"
    empty.touch()
    given = load_settings(empty, environment)
    product = {
        "streams": {"window_seconds": 3.0},
        "learner": {"kl_weight": 0.25, "learning_rate": 0.5},
    }
    run_dir = tmp_path / "run-1"
    policy = DemoPolicy(model="/model", own=True, seed=4)
    found = demo_settings(given, run_dir, "transformers", policy, product)
    assert found.learner.batch_samples == 16
    assert found.streams.window_seconds == 5.0
    assert found.engine.port == 9001
    assert (found.learner.kl_weight, found.learner.seed) == (0.25, 4)
    assert found.learner.learning_rate == 1e-4  # a given model's, not the product's
    assert (found.learner.publish_every, found.gateway.port) == (1, 0)
    assert found.engine.timeout_seconds == 180.0  # time for a large model on few cores
    assert found.gateway.feedback_secret == "s" * 64
    assert "ssss" not in (run_dir / "headrace.yaml").read_text()
