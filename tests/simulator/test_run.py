"""Live users against a real HTTP server and a real broker: what they do, and what they count."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from contracts.clock import SystemClock
from contracts.events import Feedback
from contracts.ids import NewId
from contracts.settings import Kafka
from contracts.topics import FEEDBACK
from simulator.__main__ import main
from simulator.desk import Desk
from simulator.population import Population
from simulator.run import Options, Run, Summary, read_truth
from tests.topic_log import events

REFUSAL = {"id": "c0", "type": "function", "function": {"name": "refuse", "arguments": "{}"}}


class Gateway:
    """Refuses every request politely, whole or streamed; ``broken`` ones fail with status 500."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.feedback: list[dict[str, Any]] = []
        self.broken: set[int] = set()
        self.keys: set[str] = set()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/feedback", self.take_feedback)
        return app

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.add(request.headers.get("Authorization", ""))
        number = len(self.bodies)
        if number in self.broken:
            return web.json_response({"error": {"message": "no engine"}}, status=500)
        ours = {
            "decision_id": f"d{number}",
            "session_id": body["metadata"]["session_id"],
            "policy_version": "base",
            "arm": "stable",
            "action": "refuse",
            "feedback_token": f"t{number}",
        }
        if not body["stream"]:
            message = {"role": "assistant", "content": None, "tool_calls": [REFUSAL]}
            return web.json_response({"choices": [{"message": message}], "headrace": ours})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        halves = ({"name": "ref", "arguments": ""}, {"name": "use", "arguments": "{}"})
        for half in halves:
            delta = {"tool_calls": [{"index": 0, "id": "c0", "function": half}]}
            chunk = {"choices": [{"delta": delta}]}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        last = {"choices": [{"delta": {}, "finish_reason": "stop"}], "headrace": ours}
        await response.write(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    async def take_feedback(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["token"] != "t" + body["decision_id"][1:]:
            return web.json_response({}, status=403)
        self.feedback.append(body)
        return web.json_response({"event_id": "e"}, status=202)


async def simulate(
    gateway: Gateway,
    interactions: int,
    truth: Path,
    new_id: NewId,
    *,
    kafka: Kafka | None = None,
    rate: float | None = None,
    **more: Any,
) -> Summary:
    async with TestServer(gateway.app()) as server:
        options = Options(
            gateway=str(server.make_url("/")),
            kafka=kafka or Kafka(),
            model="assistant",
            interactions=interactions,
            concurrency=8,
            seed=3,
            truth=truth,
            delay_scale=0.05,
            rate=rate,
            **more,
        )
        return await Run(Desk(), options, SystemClock(), new_id).start()


async def test_users_ask_over_http_and_react_over_http_and_kafka(
    kafka: Kafka, new_id: NewId, truth_file: Path
) -> None:
    gateway = Gateway()
    summary = await simulate(gateway, 60, truth_file, new_id, kafka=kafka)
    assert summary.failed_requests == summary.failed_feedback == 0
    assert len(gateway.bodies) == summary.interactions == 60
    assert {body["stream"] for body in gateway.bodies} == {True, False}
    assert len({body["user"] for body in gateway.bodies}) > 10
    sent = events(kafka, FEEDBACK, Feedback)
    assert len(sent) + len(gateway.feedback) == summary.feedback
    assert min(len(sent), len(gateway.feedback)) > 5
    assert {event.kind for event in sent} <= {"rating", "outcome", "correction", "report"}


async def test_a_small_population_asks_with_the_key_that_it_was_given(
    new_id: NewId, truth_file: Path
) -> None:
    gateway = Gateway()
    await simulate(gateway, 40, truth_file, new_id, population=3, key="sesame")
    assert len({body["user"] for body in gateway.bodies}) == 3
    assert gateway.keys == {"Bearer sesame"}


async def test_the_truth_names_each_decision_once_and_is_right_about_refusals(
    new_id: NewId, truth_file: Path
) -> None:
    await simulate(Gateway(), 40, truth_file, new_id)
    lines = read_truth(truth_file)
    assert {line.decision_id for line in lines} == {f"d{number}" for number in range(1, 41)}
    for line in lines:
        assert line.utility == (0.4 if line.intent == "unsafe" else -0.6)
        assert line.right_action == (line.intent == "unsafe")
        assert (line.policy_version, line.arm, line.violation) == ("base", "stable", False)


async def test_a_failed_request_is_counted_and_never_asked_again(
    new_id: NewId, truth_file: Path
) -> None:
    gateway = Gateway()
    gateway.broken = {2, 5}
    summary = await simulate(gateway, 12, truth_file, new_id)
    assert summary.failed_requests == 2
    assert len(gateway.bodies) == 12
    failed = [line for line in read_truth(truth_file) if line.failed]
    assert len(failed) == 2
    assert all("500" in line.error and line.decision_id == "" for line in failed)


async def test_what_a_run_tells_people_leaves_stdout_to_the_summary(
    new_id: NewId, truth_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await simulate(Gateway(), 40, truth_file, new_id)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "who have yet to react" in shown.err


async def test_a_rate_spreads_the_questions_over_time(new_id: NewId, truth_file: Path) -> None:
    await simulate(Gateway(), 10, truth_file, new_id, rate=50.0)
    times = sorted(line.time for line in read_truth(truth_file))
    assert (times[-1] - times[0]).total_seconds() > 0.1


def test_the_same_seed_asks_the_same_questions_of_the_same_users(truth_file: Path) -> None:
    first, second = Population(5), Population(5)
    assert first.users == second.users
    drawn = [first.draw(Random(at)).user_id for at in range(400)]
    assert drawn == [second.draw(Random(at)).user_id for at in range(400)]
    counts = sorted((drawn.count(user) for user in set(drawn)), reverse=True)
    assert counts[0] > 3 * counts[len(counts) // 2]
    assert list(islice(Desk().live(5), 30)) == list(islice(Desk().live(5), 30))


def test_demonstrations_come_as_one_json_object_a_line(tmp_path: Path) -> None:
    out = tmp_path / "demonstrations.jsonl"
    assert main(["demonstrations", "--users", "desk", "--seed", "1", "--out", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert len(lines) > 1000
    roles = {tuple(m["role"] for m in json.loads(line)["messages"]) for line in lines}
    assert roles == {("user", "assistant")}
