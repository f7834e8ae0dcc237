"""One check over every engine: raw text, token ids, logprobs, adapters, errors, broken wires."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from console.local_broker import free_port
from console.probe import Answer, engine_server
from contracts.errors import EngineError
from contracts.events import Sampling
from serving.engine import EngineAnswer, EngineRequest
from serving.http_engine import HttpEngine
from serving.vllm_command import STEP_TOKENS
from tests.serving.http_server import Server

ROOT = Path(__file__).parents[2]
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
GREEDY = Sampling(temperature=0.0, max_tokens=200)
TOOLS = [{"type": "function", "function": {"name": "escalate"}}]


@pytest.fixture
def engine(admin: HttpEngine) -> HttpEngine:
    return admin


def asks(
    text: str,
    model: str = "base",
    sampling: Sampling = GREEDY,
    tools: Sequence[dict[str, Any]] = (),
) -> EngineRequest:
    return EngineRequest(model, [{"role": "user", "content": text}], list(tools), sampling)


async def streamed(engine: HttpEngine, request: EngineRequest) -> EngineAnswer:
    chunks = [chunk async for chunk in engine.stream(request)]
    return EngineAnswer(
        "".join(chunk.text for chunk in chunks),
        next(chunk.prompt_token_ids for chunk in chunks if chunk.prompt_token_ids),
        tuple(token for chunk in chunks for token in chunk.token_ids),
        tuple(value for chunk in chunks for value in chunk.logprobs),
        next(chunk.finish_reason for chunk in reversed(chunks) if chunk.finish_reason),
    )


async def test_an_answer_comes_with_its_token_ids_and_their_logprobs(engine: HttpEngine) -> None:
    answer = await engine.complete(asks("hello"))
    assert answer.text == "Grüße from a small model."
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == 2  # the end token is part of what was drawn
    assert len(answer.logprobs) == len(answer.token_ids)
    assert all(-0.5 < value <= 0 for value in answer.logprobs)
    assert len(answer.prompt_token_ids) > 5


@pytest.mark.parametrize("look", [HttpEngine.models, HttpEngine.running, HttpEngine.weights])
async def test_a_look_at_an_engine_that_hangs_ends_soon(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[HttpEngine], Awaitable[object]]
) -> None:
    monkeypatch.setattr("serving.http_engine.HEALTH_SECONDS", 0.05)
    silent = socket.create_server(("127.0.0.1", 0))
    engine = HttpEngine(f"http://127.0.0.1:{silent.getsockname()[1]}", 60.0, admin_key="admin")
    try:
        async with asyncio.timeout(30.0):
            with pytest.raises(EngineError, match=r"no answer within 0\.05 s"):
                await look(engine)
    finally:
        await engine.close()
        silent.close()


async def test_a_stream_gives_the_same_as_a_plain_answer(engine: HttpEngine) -> None:
    plain, parts = await engine.complete(asks("hello")), await streamed(engine, asks("hello"))
    assert parts.text == plain.text
    assert parts.token_ids == plain.token_ids
    assert parts.prompt_token_ids == plain.prompt_token_ids
    assert parts.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
    assert parts.finish_reason == "stop"


async def test_tools_reach_the_template_and_calls_stay_raw_text(engine: HttpEngine) -> None:
    answer = await engine.complete(asks("help me", tools=TOOLS))
    assert answer.text.startswith("<tool_call>")
    assert '"escalate"' in answer.text


async def test_a_conversation_with_tool_calls_is_rendered(engine: HttpEngine) -> None:
    call = {"name": "escalate", "arguments": '{"to": "human"}'}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "help me"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "user", "content": "hello"},
    ]
    answer = await engine.complete(EngineRequest("base", messages, TOOLS, GREEDY))
    assert len(answer.prompt_token_ids) > 40


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
async def test_logprobs_are_those_of_the_tempered_distribution(
    engine: HttpEngine, tiny_model: Path, temperature: float
) -> None:
    """The model itself, run over the logged tokens, gives the same; temperature 0 counts as 1."""
    import torch
    from transformers import AutoModelForCausalLM

    drawn = Sampling(temperature=temperature, max_tokens=12, seed=5)
    answer = await engine.complete(asks("hello you", sampling=drawn))
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokens = torch.tensor([*answer.prompt_token_ids, *answer.token_ids])
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0, len(answer.prompt_token_ids) - 1 : -1]
    logprobs = (logits / (temperature or 1.0)).log_softmax(-1)
    expected = logprobs[torch.arange(len(answer.token_ids)), list(answer.token_ids)]
    assert answer.logprobs == pytest.approx(expected.tolist(), abs=2e-3)


async def test_logprobs_are_those_after_top_p(engine: HttpEngine) -> None:
    """Of a nucleus of one token, the one token has probability 1."""
    narrow = Sampling(temperature=1.0, top_p=1e-6, max_tokens=5)
    answer = await engine.complete(asks("hello", sampling=narrow))
    assert answer.logprobs == pytest.approx([0.0] * len(answer.logprobs), abs=1e-6)


async def test_the_same_seed_draws_the_same_tokens(engine: HttpEngine) -> None:
    seeded = Sampling(temperature=1.5, max_tokens=20, seed=11)
    first, second = [await engine.complete(asks("tell", sampling=seeded)) for _ in range(2)]
    assert first.token_ids == second.token_ids


async def test_a_seed_draws_the_same_tokens_where_prompts_take_several_steps(
    engine: HttpEngine,
) -> None:
    """More of them at once than a step of the engine takes: some are cut."""
    question = "tell me more " * 8
    asked = [
        asks(question, sampling=Sampling(temperature=1.5, max_tokens=8, seed=place))
        for place in range(12)
    ]
    together = await asyncio.gather(*(engine.complete(one) for one in asked))
    assert sum(len(answer.prompt_token_ids) for answer in together) > 3 * STEP_TOKENS
    for one, answer in zip(asked[:4], together, strict=False):
        alone = await engine.complete(one)
        assert alone.token_ids == answer.token_ids


async def test_an_answer_that_reaches_its_bound_says_so(engine: HttpEngine) -> None:
    answer = await engine.complete(asks("count", sampling=Sampling(temperature=0, max_tokens=3)))
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 3)


async def test_concurrent_answers_do_not_mix(engine: HttpEngine) -> None:
    questions = ["hello", "count"] * 8
    answers = await asyncio.gather(*(engine.complete(asks(text)) for text in questions))
    for question, answer in zip(questions, answers, strict=True):
        assert answer.text.startswith("Grüße" if question == "hello" else "1 2 3")


async def test_adapters_come_go_and_change_the_answer(
    engine: HttpEngine, tiny_adapters: tuple[Path, Path]
) -> None:
    before = await engine.complete(asks("hello"))
    for name, path in zip(("one", "two"), tiny_adapters, strict=True):
        await engine.load_adapter(name, path)
        await engine.load_adapter(name, path)
    models = await engine.models()
    assert models == {"base": "", "one": str(tiny_adapters[0]), "two": str(tiny_adapters[1])}
    one = await engine.complete(asks("hello", "one"))
    two = await engine.complete(asks("hello", "two"))
    assert len({before.logprobs[:3], one.logprobs[:3], two.logprobs[:3]}) == 3
    assert (await engine.complete(asks("hello"))).logprobs == pytest.approx(
        before.logprobs, abs=1e-4
    )
    for name in ("one", "two", "one"):
        await engine.unload_adapter(name)
    assert await engine.models() == {"base": ""}
    assert (await engine.complete(asks("hello"))).text == before.text


async def test_an_adapter_name_is_never_given_to_other_files(
    engine: HttpEngine, tiny_adapters: tuple[Path, Path]
) -> None:
    await engine.load_adapter("fixed", tiny_adapters[0])
    with pytest.raises(EngineError, match="already been loaded"):
        await engine.load_adapter("fixed", tiny_adapters[1])
    await engine.unload_adapter("fixed")


async def test_refusals_carry_the_status(engine: HttpEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as unknown:
        await engine.complete(asks("hello", "nobody"))
    with pytest.raises(EngineError) as unknown_stream:
        await anext(engine.stream(asks("hello", "nobody")))
    with pytest.raises(EngineError) as too_long:
        await engine.complete(asks("zq " * 600))
    with pytest.raises(EngineError) as no_files:
        await engine.load_adapter("empty", tmp_path)
    assert (unknown.value.status, unknown_stream.value.status) == (404, 404)
    assert (too_long.value.status, no_files.value.status // 100) == (400, 4)


async def test_a_stream_left_early_frees_the_engine(engine: HttpEngine) -> None:
    async with aclosing(engine.stream(asks("count"))) as chunks:
        await anext(chunks)
    assert (await engine.complete(asks("hello"))).finish_reason == "stop"


async def test_the_engine_says_that_it_is_healthy(engine: HttpEngine) -> None:
    assert await engine.healthy()


async def test_the_engine_says_how_many_requests_wait(any_engine: Server) -> None:
    assert await asyncio.to_thread(engine_server(any_engine.url).ask) == Answer(0)


async def test_an_engine_that_is_not_there_is_unhealthy_and_refuses_with_status_0() -> None:
    engine = HttpEngine(f"http://127.0.0.1:{free_port()}", timeout_seconds=2.0)
    assert not await engine.healthy()
    with pytest.raises(EngineError) as refused:
        await engine.complete(asks("hello"))
    assert refused.value.status == 0
    await engine.close()


async def test_an_engine_that_says_nothing_meets_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = HttpEngine(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=0.2)
        with pytest.raises(EngineError, match=r"no answer within 0\.2 s") as late:
            await engine.complete(asks("hello"))
        assert late.value.status == 504
        await engine.close()


@asynccontextmanager
async def answering(body: bytes) -> AsyncIterator[str]:
    """Give the URL of an engine that answers everything with this."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        with suppress(ConnectionError):  # who has read enough hangs up
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"no json", "cannot read"),
        (b'{"choices": []}', "0 choices"),
        (b'{"choices": [{"message": {"content": "x"}, "token_ids": [1]}]}', "1 token ids but 0"),
    ],
)
async def test_nonsense_from_an_engine_is_an_engine_error(body: bytes, message: str) -> None:
    async with answering(body) as url:
        engine = HttpEngine(url, timeout_seconds=5.0)
        with pytest.raises(EngineError, match=message):
            await engine.complete(asks("hello"))
        await engine.close()


async def test_an_event_longer_than_a_line_may_be_is_an_engine_error() -> None:
    event = b'data: {"choices": [], "prompt_token_ids": [%s]}\n\n' % b",".join(
        [b"1234567"] * 500_000
    )
    async with answering(event + b"data: [DONE]\n\n") as url:
        engine = HttpEngine(url, timeout_seconds=60.0)
        with pytest.raises(EngineError, match="an event of its stream is longer than"):
            await streamed(engine, asks("hello"))
        assert await engine.healthy()  # the client is as good as before
        await engine.close()
