"""Replaces the weights of the base model in an engine, step by step, each with a deadline.

Hold new answers at the door, let those under way end, then pause (keep), reload, reset the prefix
cache, resume, and ask for a token. Whatever fails, the weights before come back, and the engine is
resumed and let go; the error says in what state it is left. So no answer is of two versions. Nor is
one of another version than its name says: while nobody knows the weights the door answers to none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from contracts.errors import EngineError
from contracts.events import BASE_VERSION

POLL_SECONDS = 0.02
UNKNOWN = "unknown"
"""Whose weights these are while they are replaced; the door answers to no version's name then."""


class Deadlines(Struct, frozen=True, kw_only=True):
    """How long each step may take, in seconds."""

    drain: float = 60.0
    pause: float = 10.0
    reload: float = 240.0
    reset: float = 10.0
    resume: float = 10.0
    probe: float = 30.0

    def whole(self) -> float:
        """Return how long answers are held at most, there and back."""
        steps = self.pause + 2 * (self.reload + self.reset + self.resume + self.probe)
        return min(self.drain + steps, 600.0)


USUAL = Deadlines()


class Weights(Struct, frozen=True):
    """Whose weights ("" for the base model's own), and the directory they lie in."""

    version: str
    path: Path


class SwappingEngine(Protocol):
    """What a swap asks of an engine. All raise EngineError."""

    async def admin(
        self, method: str, path: str, body: object = None, seconds: float = ...
    ) -> bytes:
        """Call a path that needs the admin key, and return the body of the answer."""
        ...

    async def probe(self, model: str, seconds: float) -> None:
        """Ask a model for one token."""
        ...

    async def running(self) -> dict[str, int] | None:
        """Return model to number of its answers under way; None when the engine has no door."""
        ...


async def swap_weights(
    engine: SwappingEngine, to: Weights, back: Weights, deadlines: Deadlines
) -> None:
    """Have the engine answer with other weights; EngineError says what it serves instead.

    Once the weights are touched it goes on to a known end, also when it is cancelled.
    """
    await engine.admin("POST", "/headrace/hold", {"seconds": deadlines.whole()})
    try:
        await _drain(engine, back, deadlines.drain)
        await _to_the_end(_there_or_back(engine, to, back, deadlines))
    finally:
        await engine.admin("DELETE", "/headrace/hold")


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work whose every step has a deadline; cancelling ends the wait only after it."""
    task, cancelled = asyncio.ensure_future(work), None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    task.result()


async def _there_or_back(
    engine: SwappingEngine, to: Weights, back: Weights, deadlines: Deadlines
) -> None:
    try:
        await _replace(engine, to, deadlines)
    except EngineError as error:
        await _go_back(engine, to, back, deadlines, error)


async def _drain(engine: SwappingEngine, back: Weights, seconds: float) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while running := await engine.running():
        if asyncio.get_running_loop().time() > end:
            count = sum(running.values())
            raise EngineError(
                f"{count} answers are under way after {seconds:.3g} s; nothing was changed, the "
                f"engine serves {_name(back)}; try again with less traffic or more time",
                503,
            )
        await asyncio.sleep(POLL_SECONDS)


async def _replace(engine: SwappingEngine, to: Weights, deadlines: Deadlines) -> None:
    try:
        # Should the controller die from here on, the hold ends, but nothing has a wrong name.
        await engine.admin("POST", "/headrace/weights", {"version": UNKNOWN}, deadlines.pause)
        await engine.admin("POST", "/pause?mode=keep", seconds=deadlines.pause)
        asked = {"method": "reload_weights", "kwargs": {"weights_path": str(to.path)}}
        await engine.admin("POST", "/collective_rpc", asked, deadlines.reload)
        await _reset(engine, deadlines.reset)
    finally:
        await engine.admin("POST", "/resume", seconds=deadlines.resume)
    await engine.admin("POST", "/headrace/weights", {"version": to.version})
    await engine.probe(to.version or BASE_VERSION, deadlines.probe)


async def _reset(engine: SwappingEngine, seconds: float) -> None:
    """Forget the keys and values of the weights before; vLLM says so when it could not."""
    path = "/reset_prefix_cache?reset_running_requests=true"
    answer = await engine.admin("POST", path, seconds=seconds)
    try:
        done = bool(answer) and msgspec.json.decode(answer).get("success")
    except (msgspec.MsgspecError, AttributeError):
        done = False
    if not done:
        raise EngineError(f"the prefix cache was not reset: {answer[:200]!r}")


async def _go_back(
    engine: SwappingEngine, to: Weights, back: Weights, deadlines: Deadlines, error: EngineError
) -> None:
    try:
        await _replace(engine, back, deadlines)
    except EngineError as second:
        raise EngineError(
            f"{_name(to)} could not be loaded ({error}), nor {_name(back)} again ({second}); "
            "the engine's weights are unknown, so it answers nobody; the swap is tried again, or "
            "restart the engine"
        ) from error
    raise EngineError(
        f"{_name(to)} could not be loaded: {error}; the engine serves {_name(back)} again",
        error.status,
    ) from error


def _name(weights: Weights) -> str:
    return weights.version[:12] or "the base model"
