"""The engine's HTTP bodies as far as we write and read them: vLLM's form of the OpenAI API."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from contracts.errors import EngineError
from serving.engine import EngineRequest

MESSAGE_CHARACTERS = 500
"""How much of an engine's error message is kept: it may quote a whole conversation."""


class _Logprob(Struct):
    logprob: float


class _Logprobs(Struct):
    content: tuple[_Logprob, ...] | None = None


class _Text(Struct):
    content: str | None = None


class Choice(Struct):
    """The one choice of a completion, or of a chunk of it."""

    message: _Text | None = None
    delta: _Text | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None

    def drawn(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return (token ids, their log-probabilities); EngineError when they do not pair up."""
        ids = self.token_ids or ()
        entries = self.logprobs.content if self.logprobs else None
        logprobs = tuple(entry.logprob for entry in entries or ())
        if len(ids) != len(logprobs):
            raise EngineError(
                f"engine gave {len(ids)} token ids but {len(logprobs)} logprobs; it must be vLLM "
                "0.32 or 'python -m serving engine', which honour return_token_ids and logprobs"
            )
        return ids, logprobs


class Completion(Struct):
    """A completion or a chunk of one; ``error`` is how vLLM ends a stream that failed."""

    choices: tuple[Choice, ...] = ()
    prompt_token_ids: tuple[int, ...] | None = None
    error: dict[str, Any] | None = None


class _Model(Struct):
    id: str
    root: str | None = None
    parent: str | None = None


class Models(Struct):
    """The answer of ``GET /v1/models``."""

    data: tuple[_Model, ...]


class Running(Struct):
    """The door's answers under way, by model."""

    running: dict[str, int]


class Version(Struct):
    """The door's word on whose full weights are served, "" for the base's own."""

    version: str


class _Refusal(Struct):
    error: dict[str, Any]


Wire = TypeVar("Wire")
completions = msgspec.json.Decoder(Completion)
models = msgspec.json.Decoder(Models)
versions = msgspec.json.Decoder(Version)
counts = msgspec.json.Decoder(Running)
_refusals = msgspec.json.Decoder(_Refusal)


def chat_body(request: EngineRequest, *, stream: bool) -> dict[str, Any]:
    """Return the body that makes vLLM give raw text, token ids and logprobs.

    ``tool_choice`` "none" renders the tools into the prompt and leaves the answer unparsed;
    ``top_logprobs`` 0 asks for the drawn tokens alone. All sampling values are given, so that no
    default of the model's generation config can change the distribution.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "messages": request.messages,
        "stream": stream,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": True,
    }
    if request.tools:
        body["tools"] = request.tools
        body["tool_choice"] = "none"
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    return body


def only_choice(body: Completion) -> Choice:
    """Return the choice; EngineError unless there is exactly one."""
    if len(body.choices) != 1:
        raise EngineError(f"engine answered with {len(body.choices)} choices; expected 1")
    return body.choices[0]


def decode(decoder: msgspec.json.Decoder[Wire], data: bytes) -> Wire:
    """Return the decoded body; EngineError when it cannot be read."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EngineError(f"engine answered what we cannot read: {error}") from error


def refusal(status: int, data: bytes) -> EngineError:
    """Return the error that an answer of this status means."""
    try:
        message = message_of(_refusals.decode(data).error)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        message = data[:MESSAGE_CHARACTERS].decode("utf-8", "replace")
    return EngineError(f"engine refused ({status}): {message}", status)


def message_of(error: dict[str, Any]) -> str:
    """Return the start of the engine's own message."""
    return str(error.get("message", error))[:MESSAGE_CHARACTERS]
