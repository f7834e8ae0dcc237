"""One sentence of the contract: what must hold, who relies on it, and the check of it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct, field

CASE_SECONDS = 60.0
"""Some clients try for ever."""

Status = Literal["relied on", "relied on in production", "claimed only"]


class Case(Struct, frozen=True, kw_only=True):
    """One row of the table.

    ``check`` is a function or coroutine function over a `contracts.settings.Kafka` with a prefix of
    its own; with ``restarts`` it also gets a call that stops and starts the broker as the stack
    does. ``by`` says per file what the product would lose. ``local`` says why the development
    broker does not keep it and what stands in, or is empty when it does. ``note`` says why
    nobody relies on a claim.
    """

    check: Callable[..., Any]
    status: Status = "relied on"
    by: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    local: str = ""
    restarts: bool = False

    @property
    def name(self) -> str:
        """The name of the check, as pytest shows it."""
        return self.check.__name__

    @property
    def noun(self) -> str:
        """What the case is about: the name of its file."""
        return self.check.__module__.rpartition(".")[2]

    @property
    def sentence(self) -> str:
        """What must hold, in words."""
        words = self.name.replace("_", " ")
        return words[0].upper() + words[1:].replace(" mb ", " MB ").replace(
            "kafka python", "kafka-python"
        )

    def run(self, *arguments: Any) -> None:
        """Run the check; it raises when the broker does not keep the sentence."""
        result = self.check(*arguments)
        if inspect.iscoroutine(result):
            asyncio.run(_within(result))


async def _within(check: Any) -> None:
    async with asyncio.timeout(CASE_SECONDS):
        await check
