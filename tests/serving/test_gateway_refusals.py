"""Hostile and mistaken requests: each gets a clear answer, and the gateway goes on."""

from __future__ import annotations

import json
import socket
from http.client import HTTPResponse
from typing import Any

import msgspec
import pytest

from contracts.events import Feedback
from contracts.settings import Kafka
from contracts.tokens import feedback_token, is_proven
from contracts.topics import FEEDBACK
from tests.serving.conftest import SECRET
from tests.serving.http_server import Server
from tests.topic_log import events
from tests.until import until

HELLO = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}


def post(gateway: Server, path: str, body: bytes | dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return (status, decoded body)."""
    response, content = gateway.request(
        "POST", path, body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    return response.status, json.loads(content)


def chat(gateway: Server, **changes: Any) -> tuple[int, dict[str, Any]]:
    return post(gateway, "/v1/chat/completions", {**HELLO, **changes})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"not json", "not JSON"),
        (b"[]", "Expected `object`"),
        (b'{"model": "\xff\xfe", "messages": []}', "not UTF-8"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested too deeply"),
        (b'{"model": "assistant"}', "missing required field `messages`"),
        (b'{"model": 1, "messages": []}', "Expected `str`, got `int` at model"),
    ],
)
def test_a_body_that_is_no_request_is_a_400(gateway: Server, body: bytes, message: str) -> None:
    status, answer = post(gateway, "/v1/chat/completions", body)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert message in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_completion_tokens": 2**40}, "max_completion_tokens"),
        ({"n": 2}, "n"),
        ({"stop": "x"}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"user": "u" * 129}, "user"),
        ({"metadata": {"session_id": ""}}, "metadata.session_id"),
        ({"seed": 2**70}, "seed"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"stop_token_ids": [2]}, "stop_token_ids"),
        ({"guided_json": {}}, "guided_json"),
        ({"best_of": 2}, "best_of"),
        ({"functions": []}, "functions"),
        ({"x" * 1000: 1}, "x" * 80),
    ],
)
def test_a_value_that_is_not_allowed_is_named(
    gateway: Server, changes: dict[str, Any], param: str
) -> None:
    status, answer = chat(gateway, **changes)
    assert (status, answer["error"]["param"]) == (400, param)


def test_too_many_tokens_name_the_setting_that_allows_more(gateway: Server) -> None:
    _, answer = chat(gateway, max_tokens=10**6)
    assert "max_tokens is 1000000;" in answer["error"]["message"]
    assert "engine.max_model_len" in answer["error"]["message"]


def test_nulls_and_fields_without_effect_do_no_harm(gateway: Server) -> None:
    message = {"role": "user", "content": "hello", "name": None, "tool_calls": None, "x": 1}
    absent = ("tools", "tool_choice", "n", "stop", "user", "seed", "stream", "min_p", "functions")
    harmless = {"parallel_tool_calls": True, "store": False, "service_tier": "auto"}
    status, answer = chat(gateway, messages=[message], **dict.fromkeys(absent), **harmless)
    assert status == 200, answer


def test_another_model_is_a_404(gateway: Server) -> None:
    status, answer = chat(gateway, model="gpt-5")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "'assistant'" in answer["error"]["message"]


def test_an_unknown_path_and_method_have_the_same_shape(gateway: Server) -> None:
    assert post(gateway, "/v1/embeddings", {})[0] == 404
    assert post(gateway, "/healthz", {})[0] == 405
    assert "message" in post(gateway, "/v1/embeddings", {})[1]["error"]


def test_ten_megabytes_are_a_413_with_and_without_a_declared_length(gateway: Server) -> None:
    status, answer = post(gateway, "/v1/chat/completions", b"x" * 10_000_000)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(6):
            raw.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_a_prompt_longer_than_the_model_is_a_400(gateway: Server) -> None:
    long = [{"role": "user", "content": "zq " * 600}]
    for stream in (False, True):
        status, answer = chat(gateway, messages=long, stream=stream)
        assert (status, answer["error"]["code"]) == (400, "engine_refused")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])
def test_one_too_many_at_once_is_a_429_and_the_other_route_is_free(
    gateway: Server, path: str
) -> None:
    """Fifty requests hold all places while their bodies are awaited."""
    held = [socket.create_connection(("127.0.0.1", gateway.port), timeout=10) for _ in range(50)]
    for holder in held:
        holder.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode())

    def refused() -> HTTPResponse | None:
        response, _ = gateway.request("POST", path, json.dumps(HELLO).encode())
        return response if response.status == 429 else None

    assert until("a refusal", refused).headers["Retry-After"] == "1"
    assert post(gateway, path, HELLO)[1]["error"]["type"] == "rate_limit_error"
    other = {"/v1/feedback": ("/v1/chat/completions", 200)}.get(path, ("/v1/feedback", 400))
    assert post(gateway, other[0], HELLO)[0] == other[1]
    for holder in held:
        holder.close()


@pytest.fixture(scope="module")
def served(gateway: Server) -> dict[str, str]:
    """Our part of an answer to user u1."""

    def found() -> dict[str, str] | None:  # a place may still be held by the test before
        return chat(gateway, user="u1", metadata={"session_id": "s1"})[1].get("headrace")

    return until("an answer", found)


def feedback(served: dict[str, str], **changes: Any) -> dict[str, Any]:
    body = {
        "decision_id": served["decision_id"],
        "session_id": served["session_id"],
        "user_id": served["user_id"],
        "token": served["feedback_token"],
        "kind": "rating",
        "score": 1.0,
    }
    return {**body, **changes}


@pytest.mark.parametrize(
    "what",
    [
        {"kind": "rating", "score": -1},
        {"kind": "outcome", "score": 1, "name": "ticket"},
        {"kind": "correction", "correction": {"role": "assistant", "content": "better"}},
        {"kind": "report", "reason": "rude"},
    ],
)
def test_feedback_of_every_kind_reaches_kafka(
    gateway: Server,
    served: dict[str, str],
    gateway_topics: Kafka,
    what: dict[str, Any],
) -> None:
    status, answer = post(gateway, "/v1/feedback", feedback(served, **what))
    assert status == 202

    def found() -> Feedback | None:
        sent = events(gateway_topics, FEEDBACK, Feedback)
        return next((event for event in sent if event.id == answer["event_id"]), None)

    event = until("the feedback event", found)
    assert (event.kind, event.source, event.user_id) == (what["kind"], "http", "u1")
    assert event.decision_id == served["decision_id"]
    assert event.token != served["feedback_token"]  # who reads the topic cannot rate with it
    assert is_proven(SECRET.encode(), event)
    assert not is_proven(SECRET.encode(), msgspec.structs.replace(event, id="another"))


@pytest.mark.parametrize(
    "theft",
    [
        {"token": "0" * 64},
        {"token": ""},
        {"token": "Ünicode"},
        {"user_id": "u2"},
        {"user_id": None},
        {"session_id": "s2"},
        {"decision_id": "another"},
    ],
)
def test_a_token_is_good_for_its_own_decision_alone(
    gateway: Server, served: dict[str, str], theft: dict[str, Any]
) -> None:
    status, answer = post(gateway, "/v1/feedback", feedback(served, **theft))
    assert (status, answer["error"]["code"]) == (403, "invalid_token")


def test_a_token_of_another_secret_is_refused(gateway: Server, served: dict[str, str]) -> None:
    forged = feedback_token(b"guess", served["decision_id"], "s1", "u1")
    assert post(gateway, "/v1/feedback", feedback(served, token=forged))[0] == 403


@pytest.mark.parametrize(
    "changes",
    [
        {"score": 2},
        {"score": None},
        {"kind": "praise"},
        {"kind": "report", "reason": "x" * 4001},
        {"kind": "correction", "correction": {"role": "user", "content": "x"}},
        {"kind": "correction", "correction": {"role": "assistant"}},
        {"name": "n" * 65},
        {"token": 5},
    ],
)
def test_feedback_that_is_not_valid_is_a_400(
    gateway: Server, served: dict[str, str], changes: dict[str, Any]
) -> None:
    assert post(gateway, "/v1/feedback", feedback(served, **changes))[0] == 400


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "to: human",
        "[1]",
        '"text"',
        '{"to": NaN}',
        '{"to": 1e999}',
        '{"to": "\\ud800"}',
        '{"\\udfff": 1}',
        '{"a":' * 33 + "1" + "}" * 33,
        '{"a":' + "[" * 4000 + "]" * 4000 + "}",
    ],
)
def test_a_correction_with_arguments_that_are_no_plain_object_is_a_400(
    gateway: Server, served: dict[str, str], arguments: str
) -> None:
    status, answer = post(gateway, "/v1/feedback", feedback(served, **corrected(arguments)))
    assert status == 400
    assert answer["error"]["param"] == "correction.tool_calls[0].function.arguments"
    assert "one JSON object" in answer["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    ["{}", '{"to": "Zo\\u00eb \\ud83d\\ude00"}', '{"a":' * 32 + "1" + "}" * 32],
)
def test_a_correction_with_usual_arguments_is_taken(
    gateway: Server, served: dict[str, str], arguments: str
) -> None:
    assert post(gateway, "/v1/feedback", feedback(served, **corrected(arguments)))[0] == 202


def corrected(arguments: str) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "escalate", "arguments": arguments}}
    return {"kind": "correction", "correction": {"role": "assistant", "tool_calls": [call]}}


def test_the_gateway_is_unharmed_by_all_this(gateway: Server) -> None:
    assert chat(gateway)[0] == 200
    assert "Traceback" not in gateway.log()
