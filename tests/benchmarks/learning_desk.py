"""The support desk of the simulator as a product of `benchmarks.learning_live`.

Its base is the demo's: a small Llama that imitates a scripted legacy log.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from contracts.events import Message
from contracts.settings import Streams
from contracts.tool_calls import ToolCallScanner, answer_message
from learner.warm_start import Demonstration, Recipe, make_policy
from simulator.desk import SETTINGS, Desk
from simulator.product import Prompt, action_of

HELD = 384


class LiveDesk(Desk):
    """The desk as `learning_users.Product`."""

    def __init__(self) -> None:
        self.streams = msgspec.convert(SETTINGS["streams"], Streams)
        self.held: list[Prompt] = self.held_out(0, HELD)
        self._tools = [tool["function"]["name"] for tool in self.tools]

    def parse(self, text: str) -> Message:
        """Return what the policy said as an answer, its tool calls read as the gateway reads."""
        scanner = ToolCallScanner(self._tools, "benchmark")
        return answer_message([*scanner.feed(text), *scanner.finish()])

    def action(self, answer: Message) -> str:
        """Return the action that an answer is."""
        return action_of(answer)

    def make_base(self, directory: Path, steps: int = 600) -> Path:
        """Make the policy that the desk starts from."""
        demonstrations = msgspec.convert(list(self.demonstrations(0)), list[Demonstration])
        recipe = Recipe(threads=1)
        return make_policy(
            demonstrations, directory, seed=0, steps=steps, recipe=recipe, progress=False
        )
