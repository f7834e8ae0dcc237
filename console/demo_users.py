"""The simulated users of a run, as a process of their own, and the truth about a policy version."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from threading import Event
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from console.child_environment import inherited_environment, public_settings
from console.demo_report import Measured
from console.waiting import POLL_SECONDS
from contracts.errors import UnavailableError
from contracts.events import Message, Sampling
from contracts.settings import Settings

if TYPE_CHECKING:
    from serving.engine import Engine
    from simulator.product import Product, Prompt

HELD_OUT_SEED = 7
"""The same questions before and after, and in every run."""

CONCURRENCY = 16
STOP_SECONDS = 5.0


class UserCounts(Struct, frozen=True, kw_only=True):
    """What the users saw: the simulator's own summary."""

    interactions: int
    failed_requests: int
    feedback: int
    failed_feedback: int


class Crowd(Struct, frozen=True):
    """Who comes: ``interactions`` questions of ``users``, at most ``rate`` of them a second."""

    users: str
    interactions: int
    rate: float
    seed: int


def run_users(settings: Settings, crowd: Crowd, stop: Event) -> UserCounts:
    """Let the users come and go; their process shows its own progress.

    UnavailableError when it ends without a summary, KeyboardInterrupt when ``stop`` is set.
    """
    command = [
        *(sys.executable, "-m", "simulator", "run", "--users", crowd.users),
        *("--interactions", str(crowd.interactions), "--rate", str(crowd.rate)),
        *("--seed", str(crowd.seed), "--data", str(settings.data_dir)),
        *("--gateway", f"http://{settings.gateway.host}:{settings.gateway.port}"),
        *("--kafka", settings.kafka.bootstrap, "--prefix", settings.kafka.prefix),
        *("--model", settings.policy.name, "--truth", str(settings.state_dir / "truth.jsonl")),
    ]
    process = subprocess.Popen(
        command,
        env=inherited_environment() | public_settings(settings),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        while process.poll() is None:
            if stop.wait(POLL_SECONDS):
                raise KeyboardInterrupt
    finally:
        _end(process)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    process.stdout.close()
    if not lines:
        raise UnavailableError(
            f"the simulated users ended with code {process.returncode}; their message is above"
        )
    return msgspec.json.decode(lines[-1], type=UserCounts)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure(settings: Settings, users: str, version: str, held_out: int, stop: Event) -> Measured:
    """Ask the engine the held-out questions under one version and judge the answers.

    KeyboardInterrupt when ``stop`` is set meanwhile.
    """
    from simulator.evaluation import score
    from simulator.product import make_product

    product = make_product(users, settings.data_dir)
    prompts = product.held_out(HELD_OUT_SEED, held_out)
    try:
        answers = asyncio.run(_answers(settings, product, prompts, version, stop))
    except InterruptedError as error:
        raise KeyboardInterrupt from error
    found = score(product, prompts, answers)
    return Measured(
        version=version,
        prompts=found.questions,
        utility=found.utility,
        utility_se=found.utility_se,
        violation_rate=found.violation_rate,
        violation_rate_se=found.violation_rate_se,
        right_action=found.right_rate,
        right_action_se=found.right_rate_se,
        right_by_intent=found.right_by_intent,
    )


async def _answers(
    settings: Settings, product: Product, prompts: Sequence[Prompt], version: str, stop: Event
) -> list[Message]:
    """Return one answer per question; InterruptedError when ``stop`` is set meanwhile.

    KeyboardInterrupt would tear the event loop down.
    """
    from serving.http_engine import HttpEngine

    engine = HttpEngine(settings.engine.url, settings.engine.timeout_seconds, settings.engine.key)
    room = asyncio.Semaphore(CONCURRENCY)

    async def one(number: int, prompt: Prompt) -> Message:
        async with room:
            return await _answer(engine, settings, product, prompt, version, number)

    answers = asyncio.gather(*(one(n, prompt) for n, prompt in enumerate(prompts)))
    stopped = asyncio.create_task(_until_set(stop))
    try:
        await asyncio.wait((answers, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise InterruptedError
        return answers.result()
    finally:
        for pending in (answers, stopped):
            pending.cancel()
        await asyncio.gather(answers, stopped, return_exceptions=True)
        await engine.close()


async def _until_set(stop: Event) -> None:
    while not stop.is_set():  # noqa: ASYNC110 - a signal handler sets a thread's event
        await asyncio.sleep(POLL_SECONDS)


async def _answer(
    engine: Engine, settings: Settings, product: Product, prompt: Prompt, version: str, seed: int
) -> Message:
    """Sample one answer as the gateway would, with a seed of its own, so that a repeat agrees."""
    from contracts.tool_calls import ToolCallScanner, answer_message
    from serving.engine import EngineRequest

    gateway = settings.gateway
    sampling = Sampling(
        temperature=gateway.temperature,
        top_p=gateway.top_p,
        max_tokens=gateway.max_tokens,
        seed=seed,
    )
    messages = [{"role": "user", "content": prompt.text}]
    request = EngineRequest(version, messages, list(product.tools), sampling)
    answer = await engine.complete(request)
    scanner = ToolCallScanner([str(tool["function"]["name"]) for tool in product.tools], str(seed))
    return answer_message([*scanner.feed(answer.text), *scanner.finish()])
