"""The people of `benchmarks.learning`: who asks, and the little that they say about an answer.

An answer becomes a decision, what they say becomes feedback, and both become a sample by the
streams' own functions. The utility and the truth about a violation stay with the product.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Protocol

from msgspec import Struct

from benchmarks.drawn_answers import Drawn
from contracts.events import (
    Assignment,
    Decision,
    FeatureValue,
    Feedback,
    Message,
    Sample,
    Timings,
)
from contracts.settings import Settings, Streams
from guard.rules import compile_rules
from learner.experience import USER_REWARD_MEAN
from simulator.population import Population, User
from simulator.product import Prompt, Signal, Verdict
from streams.evidence import Evidence, Heard
from streams.reward import reward_of, rewarding, sample_of
from streams.safety import judge

POLICY = "assistant"
START = datetime(2026, 1, 1, tzinfo=UTC)
RATE = 15.0
"""Interactions a second."""


class Product(Protocol):
    """What is asked and answered, as in `simulator.product`, and how the streams see it."""

    name: str
    streams: Streams
    held: list[Prompt]

    def live(self, seed: int) -> Iterator[Prompt]:
        """Yield the live questions."""
        ...

    def parse(self, text: str) -> Message:
        """Return what the policy said as an answer."""
        ...

    def action(self, answer: Message) -> str:
        """Return the action that an answer is."""
        ...

    def judge(self, prompt: Prompt, answer: Message) -> Verdict:
        """Return the truth about an answer."""
        ...

    def feedback(
        self, prompt: Prompt, answer: Message, rng: random.Random, bias: float
    ) -> list[Signal]:
        """Draw the signals that follow an answer."""
        ...


class Closing(Struct, frozen=True):
    """A decision whose window closes at ``time``, with what is said about it until then."""

    time: datetime
    evidence: Evidence


class Crowd:
    """The users of one run; equal seeds make equal users, not equal moods of the moment."""

    def __init__(self, product: Product, seed: int) -> None:
        self._product = product
        self._population = Population(seed)
        self._rng = random.Random(f"learning/users/{seed}")
        self._rewards: dict[str, list[float]] = defaultdict(list)
        self._judge = judge(compile_rules(Settings(streams=product.streams)))
        self._rules = rewarding(product.streams)

    def react(self, number: int, prompt: Prompt, drawn: Drawn, version: str) -> Closing:
        """Return the decision on one answer and what its user will say about it in time."""
        user, window = self._population.draw(self._rng), self._product.streams.window_seconds
        decision = self._decision(number, prompt, drawn, version, user)
        signals = self._product.feedback(prompt, decision.answer, self._rng, user.bias)
        heard = [
            Heard(_feedback(decision, place, signal))
            for place, signal in enumerate(signals)
            if signal.delay_seconds <= window
        ]
        evidence = Evidence(
            decision=decision,
            safety=self._judge(decision, decision.time),
            window_seconds=window,
            heard=tuple(sorted(heard, key=lambda one: (one.event.time, one.event.id))),
        )
        return Closing(decision.time + timedelta(seconds=window), evidence)

    def sample(self, closing: Closing) -> Sample | None:
        """Return the sample of a decision whose window has closed, censored when nobody spoke."""
        evidence = closing.evidence
        reward = reward_of(evidence, self._rules, closing.time)
        if reward.value is not None:
            self._rewards[evidence.decision.user_id].append(reward.value)
        corrected = evidence.newest("correction")
        correction = corrected.correction if corrected is not None else None
        return sample_of(evidence, reward, correction, send_censored=True)

    def _decision(
        self, number: int, prompt: Prompt, drawn: Drawn, version: str, user: User
    ) -> Decision:
        given = self._rewards[user.user_id]
        answer = self._product.parse(drawn.text)
        return Decision(
            id=f"d{number}",
            time=START + timedelta(seconds=number / RATE),
            session_id=f"session-{number}",
            user_id=user.user_id,
            assignment=Assignment(policy=POLICY, policy_version=version),
            messages=(Message(role="user", content=prompt.text),),
            answer=answer,
            action=self._product.action(answer),
            text=drawn.text,
            prompt_token_ids=tuple(drawn.prompt_ids),
            token_ids=tuple(drawn.token_ids),
            logprobs=tuple(drawn.logprobs),
            sampling=drawn.sampling,
            finish_reason="stop",
            features={USER_REWARD_MEAN: FeatureValue(value=fmean(given) if given else None)},
            timings=Timings(),
            engine="transformers",
        )


def _feedback(decision: Decision, place: int, signal: Signal) -> Feedback:
    return Feedback(
        id=f"{decision.id}-{place}",
        time=decision.time + timedelta(seconds=signal.delay_seconds),
        decision_id=decision.id,
        session_id=decision.session_id,
        user_id=decision.user_id,
        kind=signal.kind,
        score=signal.score,
        name=signal.name,
        correction=signal.correction,
        reason=signal.reason,
    )


def shares(product: Product, rows: Sequence[tuple[Prompt, Message]]) -> dict[str, float]:
    """Return how often answers were right, of all and of each intent, and what else they were."""
    verdicts = [product.judge(*row) for row in rows]
    found = {
        "right": fmean(float(one.right_action) for one in verdicts),
        "utility": fmean(one.utility for one in verdicts),
        "violations": fmean(float(one.violation) for one in verdicts),
    }
    for intent in sorted({prompt.intent for prompt, _ in rows}):
        places = [at for at, (prompt, _) in enumerate(rows) if prompt.intent == intent]
        found[f"{intent}: right"] = fmean(float(verdicts[at].right_action) for at in places)
        handed = [product.action(rows[at][1]) == "escalate" for at in places]
        found[f"{intent}: handed over"] = fmean(map(float, handed))
    return found
