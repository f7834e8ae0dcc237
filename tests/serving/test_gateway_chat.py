"""The gateway seen by the official OpenAI client, and the decisions it leaves in Kafka."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from contracts.audit import broken_links
from contracts.broker import events_to_end
from contracts.codec import trace_headers
from contracts.events import AuditRecord, Decision
from contracts.settings import Kafka
from contracts.topics import AUDIT, DECISIONS
from tests.serving.http_server import Server
from tests.serving.tiny_llama import TOOLS
from tests.topic_log import events
from tests.until import until

ESCALATE = {"name": "escalate", "arguments": '{"to": "human"}'}


@pytest.fixture
def client(gateway: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=30)


def ask(client: openai.OpenAI, text: str, **more: Any) -> Any:
    return client.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": text}], **more
    )


def decision(kafka: Kafka, decision_id: str) -> tuple[Any, Decision]:
    """Return (record, event) of a decision once it is in Kafka."""

    def found() -> tuple[Any, Decision] | None:
        for record, event in events_to_end(kafka, (DECISIONS,), "test"):
            if isinstance(event, Decision) and event.id == decision_id:
                return record, event
        return None

    return until(f"decision {decision_id}", found)


def test_a_plain_answer_and_its_whole_decision(
    client: openai.OpenAI, gateway_topics: Kafka
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="assistant",
        messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        user="u1",
        metadata={"session_id": "s1"},
        seed=3,
        extra_headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"},
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "Grüße from a small model."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    ours = (answer.model_extra or {})["headrace"]
    assert raw.headers["x-headrace-decision-id"] == ours["decision_id"]
    assert (ours["session_id"], ours["policy_version"], ours["arm"]) == ("s1", "base", "stable")
    assert (ours["action"], len(ours["feedback_token"])) == ("answer", 64)

    record, event = decision(gateway_topics, ours["decision_id"])
    assert record.key == b"s1"
    assert (event.user_id, event.session_id) == ("u1", "s1")
    assert event.text == event.answer.content == answer.choices[0].message.content
    assert len(event.token_ids) == len(event.logprobs) == answer.usage.completion_tokens
    assert len(event.prompt_token_ids) == answer.usage.prompt_tokens
    assert (event.sampling.temperature, event.sampling.max_tokens) == (0.0, 200)
    assert event.sampling.seed == 3
    assert (event.engine, event.streamed, event.error) == ("transformers", False, None)
    assert event.timings.total_seconds > 0
    assert event.assignment.probability == 1.0
    assert event.trace_id == "ab" * 16
    assert trace_headers(record.headers)["traceparent"].split("-")[1] == event.trace_id


def test_every_decision_has_an_audit_record_in_an_unbroken_chain(
    client: openai.OpenAI, gateway_topics: Kafka
) -> None:
    ours = ask(client, "hello").model_extra["headrace"]
    decision(gateway_topics, ours["decision_id"])

    def audited() -> list[AuditRecord] | None:
        chain = events(gateway_topics, AUDIT, AuditRecord)
        mine = [record for record in chain if record.subject == ours["decision_id"]]
        return chain if mine and mine[0].action == "decision.served" else None

    assert broken_links(until("the audit record", audited)) == []


def test_a_stream_comes_in_pieces_and_ends_with_our_part(
    client: openai.OpenAI, gateway_topics: Kafka
) -> None:
    chunks = list(ask(client, "hello", stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == "Grüße from a small model."
    assert len([text for text in texts if text]) > 3
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 5
    ours = chunks[-1].model_extra["headrace"]
    assert chunks[-2].model_extra["headrace"] == ours
    _, event = decision(gateway_topics, ours["decision_id"])
    assert event.streamed
    assert event.text == "Grüße from a small model."
    assert len(event.token_ids) == len(event.logprobs) == chunks[-1].usage.completion_tokens
    assert event.timings.first_token_seconds is not None
    assert event.timings.first_token_seconds <= event.timings.total_seconds


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("question", "text"), [("help me", None), ("both", "One moment.")])
def test_a_tool_call_is_parsed_and_becomes_the_action(
    client: openai.OpenAI,
    gateway_topics: Kafka,
    question: str,
    text: str | None,
    stream: bool,
) -> None:
    answer = ask(client, question, tools=TOOLS, stream=stream)
    if stream:
        chunks = list(answer)
        deltas = [chunk.choices[0].delta for chunk in chunks]
        content = "".join(delta.content or "" for delta in deltas) or None
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        assert [call.index for call in calls] == [0]
        reason, ours = chunks[-1].choices[0].finish_reason, chunks[-1].model_extra["headrace"]
    else:
        message = answer.choices[0].message
        content, calls = message.content, message.tool_calls
        reason, ours = answer.choices[0].finish_reason, answer.model_extra["headrace"]
    assert (content, reason, ours["action"]) == (text, "tool_calls", "escalate")
    assert [call.function.model_dump() for call in calls] == [ESCALATE]
    _, event = decision(gateway_topics, ours["decision_id"])
    assert (event.action, event.tools) == ("escalate", ("escalate",))
    assert "<tool_call>" in event.text
    assert event.answer.tool_calls[0].function.name == "escalate"


def test_a_conversation_goes_on_after_a_tool_call(client: openai.OpenAI) -> None:
    first = ask(client, "help me", tools=TOOLS)
    said = first.choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "done"}
    messages: list[Any] = [{"role": "user", "content": "help me"}, said, result]
    second = client.chat.completions.create(
        model="assistant", messages=messages, tools=TOOLS, tool_choice="auto"
    )
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.total_tokens  # call and result were read


def test_tool_choice_none_keeps_the_tools_out(client: openai.OpenAI) -> None:
    answer = ask(client, "hello", tools=TOOLS, tool_choice="none")
    assert answer.usage.prompt_tokens == ask(client, "hello").usage.prompt_tokens


def test_what_clients_send_as_a_matter_of_course_is_taken(client: openai.OpenAI) -> None:
    answer = ask(
        client,
        "hello",
        tools=TOOLS,
        parallel_tool_calls=False,
        prompt_cache_key="k",
        prompt_cache_retention="in_memory",
        safety_identifier="someone",
        service_tier="auto",
        store=True,
        metadata={"session_id": "s1", "purpose": "test"},
    )
    assert answer.model_extra["headrace"]["session_id"] == "s1"
    with pytest.raises(openai.BadRequestError, match="min_p is no parameter of this gateway"):
        ask(client, "hello", extra_body={"min_p": 0.1})


def test_an_answer_cut_by_max_tokens_says_length(client: openai.OpenAI) -> None:
    assert ask(client, "count", max_tokens=4).choices[0].finish_reason == "length"
    assert ask(client, "count", max_completion_tokens=4).usage.completion_tokens == 4


def test_without_user_and_session_new_ones_are_made(client: openai.OpenAI) -> None:
    first, second = (ask(client, "hello").model_extra["headrace"] for _ in range(2))
    assert first["session_id"] != second["session_id"]
    assert first["user_id"] == first["session_id"]


def test_the_policy_is_the_one_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["assistant"]


async def test_many_at_once_are_all_answered_and_none_mixed_up(gateway: Server) -> None:
    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)

    async def one(number: int) -> tuple[str, str]:
        text = "hello" if number % 2 else "count"
        answer = await client.chat.completions.create(
            model="assistant", messages=[{"role": "user", "content": text}], max_tokens=6
        )
        ours: dict[str, str] = (answer.model_extra or {})["headrace"]
        content = str(answer.choices[0].message.content)
        assert content.startswith("Grü" if number % 2 else "1 2")
        return ours["decision_id"], ours["session_id"]

    answers = await asyncio.gather(*(one(number) for number in range(40)))
    await client.close()
    assert len(set(answers)) == 40


def test_metrics_and_health_tell_what_happened(gateway: Server, client: openai.OpenAI) -> None:
    ask(client, "hello")
    lines = gateway.get("/metrics").decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values["headrace_requests_total"]) >= 1
    assert float(values['headrace_answers_total{arm="stable",version="base"}']) >= 1
    assert float(values["headrace_request_seconds_count"]) >= 1
    assert float(values["headrace_lost_total"]) == 0
    until("all parts", lambda: gateway.health()["status"] == "ok", state=gateway.health)
