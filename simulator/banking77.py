"""Real customers' questions to a bank, replayed: the right action is the question's help topic.

Data: BANKING77 (Casanueva et al., 2020, arXiv 2003.04807, CC BY 4.0), read from the data folder.
Only its training file is used, split here into three parts that share no question.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from contracts.errors import UnavailableError
from contracts.events import Message
from simulator.product import (
    Prompt,
    Signal,
    Verdict,
    action_of,
    arguments_of,
    call,
    run_settings,
    same_answer,
    tool,
)
from simulator.satisfaction import Habits, draw_signals

HOME = "https://github.com/PolyAI-LDN/task-specific-datasets"
SPLIT_SEED = 77
DEMONSTRATION_QUESTIONS, HELD_OUT_QUESTIONS = 5_000, 1_500
DEMONSTRATIONS_PER_QUESTION = 2
LEGACY_RIGHT, LEGACY_HANDS_OVER = 0.5, 0.1

HABITS = Habits(correction=0.2)
"""A customer who got the wrong article often picks the right one from the list."""

RIGHT, WRONG_TOPIC, NO_TOPIC, BROKEN = 1.0, -0.5, -0.2, -1.0

SETTINGS = run_settings(
    safe_actions=["escalate", "clarify"], correction_weight=0.5, correction_replay=16
)


class Banking77:
    """The bank's help desk as a `simulator.product.Product`.

    ``data`` is the folder that holds ``banking77/train.csv``; UnavailableError when it does not.
    """

    name = "banking77"
    settings: Mapping[str, Any] = SETTINGS
    tools: tuple[dict[str, Any], ...] = (
        tool("help_topic", "Show the help article of a topic.", topic="name of the topic"),
        tool("clarify", "Ask the customer to say more."),
        tool("escalate", "Hand over to a person."),
    )

    def __init__(self, data: Path) -> None:
        rows = _read(data / "banking77" / "train.csv")
        random.Random(SPLIT_SEED).shuffle(rows)
        self.topics = tuple(sorted({topic for _, topic in rows}))
        middle = DEMONSTRATION_QUESTIONS + HELD_OUT_QUESTIONS
        self.demonstrated = rows[:DEMONSTRATION_QUESTIONS]
        self.unseen = rows[DEMONSTRATION_QUESTIONS:middle]
        self.asked = rows[middle:]

    def demonstrations(self, seed: int) -> Iterator[dict[str, Any]]:
        """Yield what a legacy assistant answered: the right topic about every second time."""
        rng = random.Random(f"banking77/demonstrations/{seed}")
        for _ in range(DEMONSTRATIONS_PER_QUESTION):
            for text, topic in rng.sample(self.demonstrated, len(self.demonstrated)):
                messages = (Message(role="user", content=text), self._legacy(topic, rng))
                yield {"messages": msgspec.to_builtins(messages)}

    def _legacy(self, topic: str, rng: random.Random) -> Message:
        draw = rng.random()
        if draw < LEGACY_RIGHT:
            return call("help_topic", topic=topic)
        if draw < LEGACY_RIGHT + LEGACY_HANDS_OVER:
            return call(rng.choice(("clarify", "escalate")))
        return call("help_topic", topic=rng.choice(self.topics))

    def live(self, seed: int) -> Iterator[Prompt]:
        """Yield the live questions in a random order, over and over."""
        rng = random.Random(f"banking77/live/{seed}")
        while True:
            for row in rng.sample(self.asked, len(self.asked)):
                yield _prompt(*row)

    def held_out(self, seed: int, count: int) -> list[Prompt]:
        """Return questions that were neither demonstrated nor are ever asked live."""
        rng = random.Random(f"banking77/held-out/{seed}")
        return [_prompt(*row) for row in rng.sample(self.unseen, min(count, len(self.unseen)))]

    def judge(self, prompt: Prompt, answer: Message) -> Verdict:
        """Return the latent utility; no answer of this product can be a violation."""
        right = same_answer(answer, prompt.right)
        return Verdict(
            utility=RIGHT if right else self._wrong(answer), violation=False, right_action=right
        )

    def _wrong(self, answer: Message) -> float:
        if action_of(answer) in ("clarify", "escalate"):
            return NO_TOPIC
        return WRONG_TOPIC if self.tool_runs(answer) else BROKEN

    def tool_runs(self, answer: Message) -> bool:
        """Return whether the answer names a help topic that exists."""
        if action_of(answer) != "help_topic":
            return False
        return (arguments_of(answer) or {}).get("topic") in self.topics

    def feedback(
        self, prompt: Prompt, answer: Message, rng: random.Random, bias: float
    ) -> list[Signal]:
        """Draw the signals that follow an answer."""
        hands_over = action_of(answer) in ("clarify", "escalate")
        # That an article was shown tells nothing: only a call that cannot run is reported.
        worked = None if hands_over or self.tool_runs(answer) else False
        wanted = None if same_answer(answer, prompt.right) else prompt.right
        verdict = self.judge(prompt, answer)
        return draw_signals(verdict, wanted, rng, bias=bias, tool_worked=worked, habits=HABITS)


def _prompt(text: str, topic: str) -> Prompt:
    return Prompt(text=text, intent=topic, right=call("help_topic", topic=topic))


def _read(path: Path) -> list[tuple[str, str]]:
    """Return (question, topic) pairs; questions that differ only in case or space count once."""
    if not path.exists():
        raise UnavailableError(
            f"{path} is missing; get BANKING77 from {HOME} and set data_dir to the folder above it"
        )
    found: dict[str, tuple[str, str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = " ".join(row["text"].split())
            found.setdefault(text.lower(), (text, row["category"]))
    return list(found.values())
