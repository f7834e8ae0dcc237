"""Down the ladder: canary, stable, base, rule; each in its share of the budget, and told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.clock import ManualClock
from contracts.events import Decision
from contracts.settings import Engine, Settings, Streams
from guard.rules import compile_rules
from serving.budget import BUDGET_HEADER
from serving.rollout_guardrails import assigned_arm, charged_arm
from serving.rungs import least_arguments
from streams.evidence import Evidence
from streams.reward import reward_of, rewarding, sample_of
from streams.safety import judge
from tests.serving.rollout_states import canary_state, user_of
from tests.serving.scripted_gateway import ScriptedGateway
from tests.serving.tiny_llama import TOOLS

STATE = canary_state(0.25)
CANARY_USER = user_of("canary", STATE)
REPLY = "A person will get back to you."
SHORT = {"X-Headrace-Timeout-Seconds": "0.2"}

Open = Callable[..., ScriptedGateway]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    made: list[ScriptedGateway] = []

    def make(**gateway: Any) -> ScriptedGateway:
        made.append(ScriptedGateway(tmp_path, STATE, fallback_reply=REPLY, **gateway))
        return made[-1]

    yield make
    for one in made:
        await one.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["fail", "hang"])
@pytest.mark.parametrize(
    ("failing", "rung", "version"),
    [
        ((), "canary", "new"),
        (("new",), "stable", "old"),
        (("new", "old"), "base", "base"),
        (("new", "old", "base"), "rule", "rule"),
    ],
)
async def test_the_highest_rung_that_works_answers_and_the_decision_names_it(
    opened: Open, failing: tuple[str, ...], rung: str, version: str, fault: str, stream: bool
) -> None:
    gateway = opened()
    gateway.engine.faults = dict.fromkeys(failing, fault)
    answer = await gateway.ask(CANARY_USER, SHORT, stream=stream)
    assert (answer.status_code, answer.headers["x-headrace-rung"]) == (200, rung)
    [decision] = gateway.decisions()
    assert (decision.rung, decision.assignment.policy_version) == (rung, version)
    assert decision.text == (REPLY if rung == "rule" else f"I am {version}.")
    notes = (decision.error or "").split("; ") if failing else []
    assert [note.split(": ")[1] for note in notes] == list(failing)
    assert gateway.audit()[0].detail["rung"] == rung
    metrics = (await gateway.client.get("/metrics")).text
    assert f'headrace_rung_answers_total{{rung="{rung}"}} 1' in metrics


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_by_rule_calls_the_tool_when_the_request_offers_it(
    opened: Open, stream: bool
) -> None:
    gateway = opened(fallback_tool="escalate")
    gateway.engine.faults = dict.fromkeys(("new", "old", "base"), "fail")
    await gateway.ask(stream=stream)
    await gateway.ask(stream=stream, tools=TOOLS)
    without, offered = gateway.decisions()
    assert (without.action, without.answer.content) == ("answer", REPLY)
    assert (offered.action, offered.answer.content) == ("escalate", REPLY)
    assert offered.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({}, {}),
        ({"properties": {"to": {"type": "string"}}, "required": ["to"]}, {"to": "why"}),
        (
            {"properties": {"to": {"type": "string", "enum": ["a", "b"]}}, "required": ["to"]},
            {"to": "a"},
        ),
        ({"properties": {"n": {"type": "integer"}}, "required": ["n"]}, None),
        ({"properties": 1, "required": ["n"]}, None),
    ],
)
def test_a_rule_calls_a_tool_only_with_what_it_can_know(
    schema: dict[str, Any], arguments: dict[str, str] | None
) -> None:
    assert least_arguments(schema, "why") == arguments


async def test_nobody_learns_from_a_reply_by_rule(opened: Open) -> None:
    gateway = opened()
    gateway.engine.faults = dict.fromkeys(("old", "base"), "fail")
    await gateway.ask(user_of("stable", STATE))
    [decision] = gateway.decisions()
    assert (decision.token_ids, decision.logprobs, decision.engine) == ((), (), "rule")
    assert _sample(decision) is None
    assert _sample(_answered_by_a_model(decision)) is not None


def _answered_by_a_model(decision: Decision) -> Decision:
    from msgspec.structs import replace

    return replace(decision, rung="base", token_ids=(1,), logprobs=(-0.1,))


def _sample(decision: Decision) -> object:
    now = ManualClock().now()
    safety = judge(compile_rules(Settings()))(decision, now)
    evidence = Evidence(decision=decision, safety=safety, window_seconds=1.0)
    reward = reward_of(evidence, rewarding(Streams(default_reward=1.0)), now)
    assert reward.value == 1.0
    return sample_of(evidence, reward)


async def test_a_stream_that_breaks_before_any_text_is_answered_by_the_next_rung(
    opened: Open,
) -> None:
    gateway = opened()
    gateway.engine.faults = {"new": "break-early"}
    answer = await gateway.ask(CANARY_USER, stream=True)
    assert answer.text.endswith("data: [DONE]\n\n")
    [decision] = gateway.decisions()
    assert (decision.rung, decision.text) == ("stable", "I am old.")


async def test_a_stream_that_breaks_after_some_text_ends_with_an_error(opened: Open) -> None:
    gateway = opened()
    gateway.engine.faults = {"new": "break-late"}
    answer = await gateway.ask(CANARY_USER, stream=True)
    assert "[DONE]" not in answer.text
    [decision] = gateway.decisions()
    assert (decision.rung, decision.finish_reason, decision.text) == ("canary", "error", "I am ")


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon"])
async def test_a_budget_that_is_no_time_is_refused(opened: Open, given: str) -> None:
    answer = await opened().ask("u", {"X-Headrace-Timeout-Seconds": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Headrace-Timeout-Seconds"


async def test_a_version_that_keeps_failing_is_skipped_and_the_decision_says_so(
    opened: Open,
) -> None:
    gateway = opened(breaker_failures=2, breaker_seconds=1000.0)
    gateway.engine.faults = {"new": "fail"}
    for _ in range(4):
        assert (await gateway.ask(CANARY_USER)).status_code == 200
    assert gateway.engine.asked["new"] == 2
    errors = [decision.error for decision in gateway.decisions()]
    assert errors[2] == errors[3] == "canary: new: skipped, it failed too often of late"
    health = (await gateway.client.get("/healthz")).json()
    assert (health["status"], health["breakers_open"]) == ("degraded", ["new"])
    metrics = (await gateway.client.get("/metrics")).text
    assert 'headrace_breaker_open{version="new"} 1' in metrics
    assert [r.subject for r in gateway.audit() if r.action == "breaker.opened"] == ["new"]


@pytest.mark.parametrize("fault", ["busy", "hang"])
async def test_neither_a_full_engine_nor_an_impatient_client_opens_a_breaker(
    opened: Open, fault: str
) -> None:
    gateway = opened(breaker_failures=1)
    gateway.engine.faults = {"new": fault}
    await gateway.ask(CANARY_USER, {"X-Headrace-Timeout-Seconds": "0.02"})
    gateway.engine.faults = {}
    await gateway.ask(CANARY_USER)
    assert [decision.rung for decision in gateway.decisions()][-1] == "canary"


async def test_streams_that_break_off_late_open_the_breaker(opened: Open) -> None:
    gateway = opened(breaker_failures=3)
    gateway.engine.faults = {"new": "break-late"}
    for _ in range(4):
        await gateway.ask(CANARY_USER, stream=True)
    assert [decision.rung for decision in gateway.decisions()] == ["canary"] * 3 + ["stable"]


async def test_the_first_rung_has_the_same_time_in_both_arms_whatever_comes_after_it(
    opened: Open,
) -> None:
    gateway = opened()
    state = canary_state(0.25, stable="base")
    gateway.states = lambda _policy: state
    gateway.engine.faults = {"new": "hang", "base": "hang"}
    for arm in ("canary", "stable"):
        await gateway.ask(user_of(arm, state), SHORT)
    canary, stable = ((decision.error or "").split("; ")[0] for decision in gateway.decisions())
    half = float(SHORT["X-Headrace-Timeout-Seconds"]) / 2
    assert 0.0 < seconds_of(canary) <= half
    assert 0.0 < seconds_of(stable) <= half


def seconds_of(note: str) -> float:
    """Return the seconds in a note of a rung that gave no answer in time."""
    return float(note.partition("no answer in ")[2].split()[0])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_canary_alone_that_calls_a_request_invalid_is_charged_and_another_answers(
    opened: Open, stream: bool
) -> None:
    gateway = opened(breaker_failures=2, breaker_seconds=1000.0)
    gateway.engine.faults = {"new": "invalid"}
    for _ in range(3):
        assert (await gateway.ask(CANARY_USER, stream=stream)).status_code == 200
    assert [decision.rung for decision in gateway.decisions()] == ["stable"] * 3
    errors = [decision.error for decision in gateway.decisions()]
    assert errors[0] == "canary: new: the engine answered with status 400"
    assert errors[2] == "canary: new: skipped, it failed too often of late"


@pytest.mark.parametrize("arm", ["canary", "stable"])
async def test_a_request_that_stable_calls_invalid_is_refused_and_nobody_is_charged(
    opened: Open, arm: str
) -> None:
    gateway = opened(breaker_failures=1)
    gateway.engine.faults = {"new": "invalid", "old": "invalid"}
    answer = await gateway.ask(user_of(arm, STATE))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "engine_refused")
    assert gateway.decisions() == []
    assert gateway.running.gateway.breakers.open_versions() == ()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("header", "patience", "charged"),
    [
        ({}, 10.0, "canary"),
        ({BUDGET_HEADER: "0.19"}, 10.0, "canary"),  # hardly cut
        ({BUDGET_HEADER: "0.08"}, 10.0, None),
        ({BUDGET_HEADER: "0.08"}, 0.03, "canary"),  # cut, and yet it had long enough
        ({BUDGET_HEADER: "0.04"}, 0.03, None),
    ],
)
async def test_time_that_ran_out_counts_by_how_long_the_version_had_whoever_cut_it(
    opened: Open,
    header: dict[str, str],
    patience: float,
    charged: str | None,
    stream: bool,
) -> None:
    gateway = opened(
        engine=Engine(timeout_seconds=0.2), breaker_failures=1, patience_seconds=patience
    )
    gateway.engine.faults = {"new": "hang"}
    await gateway.ask(CANARY_USER, header, stream=stream)
    [decision] = gateway.decisions()
    assert "new: no answer in " in (decision.error or "")
    found = judge(compile_rules(Settings()))(decision, ManualClock().now())
    assert (charged_arm(found), assigned_arm(found)) == (charged, "canary")
    opened_now = gateway.running.gateway.breakers.open_versions()
    assert opened_now == (("new",) if charged else ())


@pytest.mark.parametrize(
    ("fault", "stream", "tokens", "charged"),
    [
        ("hang", False, 20, "canary"),
        ("hang", False, 21, None),  # a long answer takes its time
        ("hang", True, 21, "canary"),  # its first text does not
        ("run-over", True, 20, "canary"),
        ("run-over", True, 21, None),
        ("break-late", True, 21, "canary"),
        ("fail", False, 21, "canary"),
    ],
)
async def test_time_that_a_long_answer_took_is_not_charged(
    opened: Open, fault: str, stream: bool, tokens: int, charged: str | None
) -> None:
    gateway = opened(engine=Engine(timeout_seconds=0.2), breaker_failures=1, max_tokens=20)
    gateway.engine.faults = {"new": fault}
    await gateway.ask(CANARY_USER, stream=stream, max_tokens=tokens)
    [decision] = gateway.decisions()
    found = judge(compile_rules(Settings()))(decision, ManualClock().now())
    assert (charged_arm(found), assigned_arm(found)) == (charged, "canary")
    opened_now = gateway.running.gateway.breakers.open_versions()
    assert opened_now == (("new",) if charged else ())


async def test_one_user_with_long_answers_shuts_no_version_out_for_the_others(
    opened: Open,
) -> None:
    gateway = opened(engine=Engine(timeout_seconds=0.1), max_tokens=20)
    gateway.engine.faults = {"old": "hang", "base": "hang"}
    stable = user_of("stable", STATE)
    for _ in range(6):
        await gateway.ask(stable, max_tokens=200)
    gateway.engine.faults = {}
    assert (await gateway.ask(stable)).headers["x-headrace-rung"] == "stable"
