"""What a simulated product is: its questions, its right answers, and what its users feel.

It knows nothing of HTTP, Kafka or models. The latent utility in a `Verdict` never leaves the
simulator; the platform sees only the `Signal` values drawn from it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from contracts.errors import SettingsError
from contracts.events import FeedbackKind, FunctionCall, Message, ToolCall

ANSWER = "answer"
"""Action of a plain answer; every other action is the name of a tool."""


class Prompt(Struct, frozen=True, kw_only=True):
    """One question, its intent, and the answer that is right for it."""

    text: str
    intent: str
    right: Message


class Verdict(Struct, frozen=True, kw_only=True):
    """The truth about one answer: latent utility in [-1, 1], violation, right action."""

    utility: float
    violation: bool
    right_action: bool


class Signal(Struct, frozen=True, kw_only=True):
    """One piece of feedback that arrives ``delay_seconds`` after the answer."""

    kind: FeedbackKind
    delay_seconds: float
    score: float | None = None
    name: str | None = None
    correction: Message | None = None
    reason: str | None = None


class Product(Protocol):
    """One simulated product and its users."""

    name: str
    tools: tuple[dict[str, Any], ...]
    settings: Mapping[str, Any]

    def demonstrations(self, seed: int) -> Iterator[dict[str, Any]]:
        """Yield the log of the policy that served before, as ``{"messages": [...]}``."""
        ...

    def live(self, seed: int) -> Iterator[Prompt]:
        """Yield the questions of live users, without end."""
        ...

    def held_out(self, seed: int, count: int) -> list[Prompt]:
        """Return questions that are never asked live."""
        ...

    def judge(self, prompt: Prompt, answer: Message) -> Verdict:
        """Return the truth about an answer."""
        ...

    def feedback(
        self, prompt: Prompt, answer: Message, rng: random.Random, bias: float
    ) -> list[Signal]:
        """Draw what a user whose mood is shifted by ``bias`` lets the platform know."""
        ...


def make_product(users: str, data: Path) -> Product:
    """Return the product named ``users``; ``data`` is the folder of public data sets."""
    if users == "desk":
        from simulator.desk import Desk

        return Desk()
    if users == "banking77":
        from simulator.banking77 import Banking77

        return Banking77(data)
    raise SettingsError(f"users {users!r} are not known; choose desk or banking77")


def run_settings(
    *,
    safe_actions: list[str],
    disallowed_topics: Sequence[Mapping[str, Any]] = (),
    **learner: float,
) -> Mapping[str, Any]:
    """Return the platform's settings for a run of minutes; ``learner`` adds to that section."""
    weights = {"rating": 1.0, "outcome": 0.6, "correction": 0.5, "report": 1.0, "safety": 2.0}
    weights |= {"tool": 0.6, "re-ask": 0.6}
    return {
        "gateway": {"max_tokens": 24},
        "streams": {
            "window_seconds": 8.0,
            "reward": {name: {"weight": weight} for name, weight in weights.items()},
            "disallowed_topics": list(disallowed_topics),
            "safe_actions": safe_actions,
        },
        "learner": {
            "batch_samples": 64,
            "publish_every": 2,
            "learning_rate": 5e-4,
            "lora_rank": 32,
            "lora_alpha": 64.0,
            **learner,
        },
    }


def call(name: str, **arguments: str) -> Message:
    """Return an assistant message with one tool call."""
    function = FunctionCall(name, json.dumps(arguments))
    return Message(role="assistant", tool_calls=(ToolCall(id="call_0", function=function),))


def say(text: str) -> Message:
    """Return a plain assistant message."""
    return Message(role="assistant", content=text)


def action_of(answer: Message) -> str:
    """Return the name of the first tool called, or `ANSWER`."""
    return answer.tool_calls[0].function.name if answer.tool_calls else ANSWER


def arguments_of(answer: Message) -> dict[str, Any] | None:
    """Return the arguments of the first tool call, None when they are not a JSON object."""
    if not answer.tool_calls:
        return {}
    try:
        arguments = json.loads(answer.tool_calls[0].function.arguments or "{}")
    except json.JSONDecodeError:
        return None
    return arguments if isinstance(arguments, dict) else None


def same_answer(answer: Message, right: Message) -> bool:
    """Return whether two answers take the same action with the same content."""
    if action_of(answer) != action_of(right) or arguments_of(answer) != arguments_of(right):
        return False
    return bool(answer.tool_calls) or answer.content == right.content


def tool(name: str, description: str, **arguments: str) -> dict[str, Any]:
    """Return a tool in the OpenAI form; ``arguments`` map names of strings to what they mean."""
    parameters = {
        "type": "object",
        "properties": {
            argument: {"type": "string", "description": meaning}
            for argument, meaning in arguments.items()
        },
        "required": list(arguments),
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}
