"""The inference engine seen from its callers: what is asked, what is answered, what it can do.

It knows nothing of arms, users or tools' meaning: the answer is raw text, with the engine's own
token ids and log-probabilities.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from contracts.events import Sampling
from serving.weight_swap import Weights


class EngineRequest(Struct, frozen=True):
    """One generation. ``model`` is "base" or the name of a loaded adapter (its version).

    ``messages`` and ``tools`` are in the OpenAI wire form; ``trace`` holds W3C trace headers.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    sampling: Sampling
    trace: dict[str, str] = {}


class EngineAnswer(Struct, frozen=True):
    """A finished generation: ``token_ids`` includes the end token, ``logprobs`` has one per id.

    The log-probabilities are those of the distribution the token was drawn from: after
    temperature, top_k and top_p (at temperature 0 those of the untempered model). vLLM gives these
    under ``--logprobs-mode processed_logprobs``.
    """

    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    first_token_seconds: float | None = None


class EngineChunk(Struct, frozen=True):
    """A piece of a generation; ``prompt_token_ids`` is set in the first alone.

    ``text`` may be empty while ``token_ids`` is not: half a character is held back.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    prompt_token_ids: tuple[int, ...] = ()


class Engine(Protocol):
    """What the gateway and the rollout controller ask of an engine. All raise EngineError."""

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        """Generate a whole answer."""
        ...

    def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Generate piece by piece; closing the generator stops the generation."""
        ...

    async def load_adapter(self, name: str, path: Path) -> None:
        """Make the adapter in a directory available under a new name; twice the same is fine."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; one that is not loaded is fine, 409 while its answers run."""
        ...

    async def models(self) -> dict[str, str]:
        """Return name to adapter path of all served models; the base model's path is ""."""
        ...

    async def running(self) -> dict[str, int] | None:
        """Return model to number of its answers under way; None when the engine has no door."""
        ...

    async def weights(self) -> str:
        """Return whose full weights the base model has; "" for its own."""
        ...

    async def swap_weights(self, to: Weights, back: Weights) -> None:
        """Replace the weights of the base model; see `serving.weight_swap`."""
        ...

    async def healthy(self) -> bool:
        """Tell whether the engine answers its health check."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
