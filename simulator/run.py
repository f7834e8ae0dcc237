"""Live users against a running platform: they ask over HTTP and answer back over HTTP and Kafka.

The truth about every interaction goes to a file that the platform never reads.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct
from tqdm import tqdm

from contracts.broker import make_producer, send_and_wait
from contracts.clock import Clock
from contracts.codec import encode, to_json
from contracts.errors import HeadraceError
from contracts.events import Feedback
from contracts.ids import NewId
from contracts.settings import Kafka
from contracts.topics import FEEDBACK
from simulator.client import Answered, GatewayClient, Ours, RequestFailedError
from simulator.population import USERS, Population, User
from simulator.product import Product, Prompt, Signal

SOURCE = "headrace/simulator"
STREAMED, OVER_HTTP = 0.25, 0.5
"""Shares of requests that stream, and of feedback that goes through the gateway."""

LONGEST_DELAY_SECONDS = 30.0
FEEDBACK_SECONDS = 90.0
"""How long the end of a run may wait for feedback that is still to be sent."""

SHOWN = 200


class Options(Struct, frozen=True, kw_only=True):
    """What a run is asked to do. ``kafka`` without bootstrap: all feedback goes over HTTP.

    ``delay_scale`` multiplies the delay of every feedback; ``rate`` bounds the questions per
    second, None: as fast as the answers come. ``population`` is the number of different users,
    ``key`` the API key they share.
    """

    gateway: str
    kafka: Kafka
    model: str
    interactions: int
    concurrency: int
    seed: int
    truth: Path
    delay_scale: float = 1.0
    rate: float | None = None
    population: int = USERS
    key: str = ""


class Truth(Struct, frozen=True, kw_only=True):
    """One line of the truth file; ``decision_id`` is empty when the request failed."""

    decision_id: str
    time: datetime
    user: str
    intent: str
    failed: bool
    policy_version: str = ""
    arm: str = ""
    utility: float = 0.0
    violation: bool = False
    right_action: bool = False
    error: str = ""


class Summary(Struct, frozen=True, kw_only=True):
    """Counts of a run."""

    interactions: int
    failed_requests: int
    feedback: int
    failed_feedback: int


class Run:
    """One run of one product's users; `start` does it all."""

    def __init__(self, product: Product, options: Options, clock: Clock, new_id: NewId) -> None:
        self._product = product
        self._options = options
        self._clock = clock
        self._new_id = new_id
        self._population = Population(options.seed, options.population)
        self._questions: Iterator[Prompt] = product.live(options.seed)
        self._client: GatewayClient
        self._began = clock.monotonic()
        self._kafka = Channel(options.kafka) if options.kafka.bootstrap else None
        self._outstanding: set[asyncio.Task[None]] = set()
        self._recent: deque[Truth] = deque(maxlen=SHOWN)
        self._failed = self._sent = self._failed_feedback = 0

    async def start(self) -> Summary:
        """Ask all questions with at most ``concurrency`` at a time, then await the feedback."""
        options = self._options
        self._client = GatewayClient(
            options.gateway, options.model, options.concurrency, options.key
        )
        self._began = self._clock.monotonic()
        numbers = iter(range(options.interactions))
        options.truth.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                options.truth.open("wb") as truth,
                tqdm(total=options.interactions, desc="interactions", unit="") as bar,
            ):
                async with asyncio.TaskGroup() as users:
                    for _ in range(options.concurrency):
                        users.create_task(self._use(numbers, truth, bar))
            await self._await_feedback()
        finally:
            await self._client.close()
            if self._kafka is not None:
                await asyncio.to_thread(self._kafka.close)
        return Summary(
            interactions=options.interactions,
            failed_requests=self._failed,
            feedback=self._sent,
            failed_feedback=self._failed_feedback,
        )

    async def _use(self, numbers: Iterator[int], truth: BinaryIO, bar: tqdm[Any]) -> None:
        for number in numbers:
            await self._turn(number)
            line = await self._interact(number, next(self._questions))
            truth.write(to_json(line) + b"\n")
            truth.flush()
            self._failed += line.failed
            self._recent.append(line)
            bar.set_postfix_str(_shown(self._recent, self._failed), refresh=False)
            bar.update()

    async def _turn(self, number: int) -> None:
        """Wait until the rate allows question ``number``."""
        if self._options.rate is not None:
            due = self._began + number / self._options.rate
            await asyncio.sleep(max(0.0, due - self._clock.monotonic()))

    async def _interact(self, number: int, prompt: Prompt) -> Truth:
        """Ask one question, judge the answer and let the user react to it."""
        rng = random.Random(f"{self._product.name}/{self._options.seed}/{number}")
        user = self._population.draw(rng)
        unanswered = Truth(
            decision_id="",
            time=self._clock.now(),
            user=user.user_id,
            intent=prompt.intent,
            failed=True,
        )
        try:
            answered = await self._client.ask(
                prompt.text,
                self._product.tools,
                user_id=user.user_id,
                session_id=self._new_id(),
                stream=rng.random() < STREAMED,
            )
        except RequestFailedError as error:
            return msgspec.structs.replace(unanswered, error=str(error))
        self._react(prompt, answered, user, rng)
        verdict = self._product.judge(prompt, answered.message)
        return msgspec.structs.replace(
            unanswered,
            failed=False,
            decision_id=answered.decision.decision_id,
            policy_version=answered.decision.policy_version,
            arm=answered.decision.arm,
            **msgspec.structs.asdict(verdict),
        )

    def _react(self, prompt: Prompt, answered: Answered, user: User, rng: random.Random) -> None:
        for signal in self._product.feedback(prompt, answered.message, rng, user.bias):
            over_http = self._kafka is None or rng.random() < OVER_HTTP
            task = asyncio.create_task(
                self._send(answered.decision, user.user_id, signal, over_http=over_http)
            )
            self._outstanding.add(task)
            task.add_done_callback(self._outstanding.discard)

    async def _send(self, decision: Ours, user_id: str, signal: Signal, *, over_http: bool) -> None:
        delay = min(signal.delay_seconds, LONGEST_DELAY_SECONDS) * self._options.delay_scale
        await asyncio.sleep(delay)
        try:
            if over_http or self._kafka is None:
                await self._client.give_feedback(decision, user_id, signal)
            else:
                event = self._event(decision, user_id, signal)
                await asyncio.to_thread(self._kafka.send, event)
        except (RequestFailedError, HeadraceError) as error:
            self._failed_feedback += 1
            tqdm.write(f"feedback not delivered: {error}", file=sys.stderr)
        else:
            self._sent += 1

    def _event(self, decision: Ours, user_id: str, signal: Signal) -> Feedback:
        return Feedback(
            id=self._new_id(),
            time=self._clock.now(),
            decision_id=decision.decision_id,
            session_id=decision.session_id,
            user_id=user_id,
            kind=signal.kind,
            score=signal.score,
            name=signal.name,
            correction=signal.correction,
            reason=signal.reason,
            token=decision.feedback_token,
        )

    async def _await_feedback(self) -> None:
        if not self._outstanding:
            return
        tqdm.write(
            f"waiting for {len(self._outstanding)} users who have yet to react", file=sys.stderr
        )
        _, late = await asyncio.wait(set(self._outstanding), timeout=FEEDBACK_SECONDS)
        for task in late:
            task.cancel()
        self._failed_feedback += len(late)


class Channel:
    """Feedback straight to Kafka, as an app with its own producer sends it."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._producer = make_producer(kafka, "headrace-simulator")

    def send(self, event: Feedback) -> None:
        """Send one event and wait until the broker has it; blocks, so call it in a thread."""
        send_and_wait(self._producer, self._kafka, encode(FEEDBACK, event, source=SOURCE))

    def close(self) -> None:
        """Flush and close the connection."""
        self._producer.close(timeout=10)


def read_truth(path: Path) -> list[Truth]:
    """Read a truth file."""
    decoder = msgspec.json.Decoder(Truth)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]


def _shown(recent: deque[Truth], failed: int) -> str:
    served = [line for line in recent if not line.failed]
    count = max(len(served), 1)
    utility = sum(line.utility for line in served) / count
    violations = sum(line.violation for line in served) / count
    truth = f"utility {utility:+.2f}, violations {violations:.3f}"
    return f"truth of the last {len(served)}: {truth}; failed {failed}"
