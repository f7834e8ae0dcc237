"""The body of ``POST /v1/chat/completions``: bytes to a checked request, or a `Refusal`.

It knows the OpenAI wire form and the gateway's defaults, nothing of arms or engines. A parameter
that could change the distribution the tokens are drawn from, and that the log of a decision could
not describe, is refused rather than ignored; so is any that is not known here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from contracts.events import Id, Message, Sampling, ToolCall
from contracts.settings import Settings
from serving.api_keys import Traits
from serving.wire_errors import Refusal

MAX_TOOLS = 128
MAX_MESSAGES = 1024
WITHOUT_EFFECT = frozenset(
    {
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
    }
)
"""Parameters that OpenAI clients send and that do not change how tokens are drawn; not acted on."""

Wire = TypeVar("Wire")
Trait = Annotated[str, Meta(max_length=64)]
ToolName = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]


class WireMessage(Struct):
    """A message as clients send it: `null` where a field is absent is fine."""

    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class _Function(Struct):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(Struct):
    function: _Function
    type: Literal["function"] = "function"


class _StreamOptions(Struct):
    include_usage: bool = False


class _Metadata(Struct):
    session_id: Id | None = None
    tier: Trait = ""
    language: Trait = ""
    region: Trait = ""


class _Body(Struct):
    model: str
    messages: Annotated[tuple[WireMessage, ...], Meta(min_length=1, max_length=MAX_MESSAGES)]
    tools: Annotated[tuple[_Tool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    user: Id | None = None
    metadata: _Metadata | None = None
    n: Any = None
    stop: Any = None
    logprobs: Any = None
    logit_bias: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    response_format: Any = None


class ChatRequest(Struct, frozen=True, kw_only=True):
    """A checked request. ``tools`` is empty when the answer must not call any."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    tool_names: tuple[str, ...]
    sampling: Sampling
    stream: bool
    include_usage: bool
    user_id: str | None
    session_id: str | None
    traits: Traits = Traits()

    def engine_messages(self) -> list[dict[str, Any]]:
        """Return the messages as the chat template reads them: text parts joined by newlines."""
        return [_engine_message(message) for message in self.messages]


_bodies = msgspec.json.Decoder(_Body)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KNOWN = WITHOUT_EFFECT.union(_Body.__struct_fields__)


def parse_chat(data: bytes, settings: Settings) -> ChatRequest:
    """Decode and check a body; Refusal 400 (or 404 for the model) says what is allowed."""
    body, policy = decode_body(_bodies, data), settings.policy.name
    if body.model != policy:
        raise Refusal(
            404,
            f"model {body.model!r} does not exist; this gateway serves {policy!r}",
            param="model",
            code="model_not_found",
        )
    _check_known(data)
    _check_unsupported(body)
    tools, metadata = body.tools or (), body.metadata or _Metadata()
    choice = "auto" if body.tool_choice is None else body.tool_choice
    if choice not in ("auto", "none"):
        raise Refusal(
            400, f"tool_choice is {choice!r}; allowed: 'auto', 'none'", param="tool_choice"
        )
    if choice == "none":
        tools = ()
    return ChatRequest(
        messages=tuple(
            checked_message(message, f"messages[{place}]")
            for place, message in enumerate(body.messages)
        ),
        tools=tuple(_tool(tool) for tool in tools),
        tool_names=tuple(tool.function.name for tool in tools),
        sampling=_sampling(body, settings),
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        user_id=body.user,
        session_id=metadata.session_id,
        traits=Traits(tier=metadata.tier, language=metadata.language, region=metadata.region),
    )


def decode_body(decoder: msgspec.json.Decoder[Wire], data: bytes) -> Wire:
    """Decode a request body; Refusal 400 with the place of the mistake."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        param = place.rstrip("`").lstrip(".") or None
        raise Refusal(400, f"{message}{f' at {param}' if param else ''}", param=param) from error
    except UnicodeDecodeError as error:
        raise Refusal(400, f"body is not UTF-8 ({error.reason}); send JSON in UTF-8") from error
    except RecursionError as error:
        raise Refusal(400, "body is nested too deeply; send a flat chat request") from error
    except msgspec.DecodeError as error:
        raise Refusal(400, f"body is not JSON: {error}; send one JSON object") from error


def _check_known(data: bytes) -> None:
    for name, value in decode_body(_fields, data).items():
        if name not in _KNOWN and bytes(value) != b"null":
            raise Refusal(
                400,
                f"{name[:80]} is no parameter of this gateway; leave it out",
                param=name[:80],
                code="unsupported_parameter",
            )


def _check_unsupported(body: _Body) -> None:
    allowed: dict[str, tuple[Any, ...]] = {
        "n": (None, 1),
        "stop": (None, []),
        "logprobs": (None, False),
        "logit_bias": (None, {}),
        "presence_penalty": (None, 0),
        "frequency_penalty": (None, 0),
        "response_format": (None, {"type": "text"}),
    }
    for name, values in allowed.items():
        value = getattr(body, name)
        if value not in values:
            text = repr(value)
            raise Refusal(
                400,
                f"{name} is {text[:80]}; allowed here: absent or {values[1]!r}",
                param=name,
                code="unsupported_parameter",
            )


def checked_message(wire: WireMessage, param: str) -> Message:
    """Return the message; Refusal 400 when it has no usable content. ``param`` names its place."""
    content = wire.content
    if isinstance(content, list):
        for part in content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise Refusal(
                    400,
                    f"{param} has a content part of type {str(part.get('type'))[:40]!r}; "
                    'allowed: {"type": "text", "text": "..."}',
                    param=param,
                )
    if content is None and not (wire.role == "assistant" and wire.tool_calls):
        raise Refusal(400, f"{param} has no content; give text", param=param)
    if wire.role == "tool" and not wire.tool_call_id:
        raise Refusal(
            400,
            f"{param} of role 'tool' has no tool_call_id; name the call it answers",
            param=param,
        )
    return Message(
        role=wire.role,
        content=content,
        tool_calls=wire.tool_calls or (),
        tool_call_id=wire.tool_call_id,
        name=wire.name,
    )


def _tool(tool: _Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.function.name}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    if tool.function.parameters is not None:
        function["parameters"] = tool.function.parameters
    return {"type": "function", "function": function}


def _sampling(body: _Body, settings: Settings) -> Sampling:
    gateway, most = settings.gateway, settings.engine.max_model_len
    asked = body.max_completion_tokens or body.max_tokens
    if asked and asked > most:
        param = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        raise Refusal(
            400,
            f"{param} is {asked}; question and answer together have at most {most} tokens: ask for "
            "fewer, or have the operator raise engine.max_model_len to what the engine has",
            param=param,
        )
    return Sampling(
        temperature=gateway.temperature if body.temperature is None else body.temperature,
        top_p=gateway.top_p if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        max_tokens=asked or gateway.max_tokens,
        seed=body.seed,
    )


def _engine_message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = msgspec.to_builtins(message)
    if isinstance(message.content, list):
        wire["content"] = "\n".join(part["text"] for part in message.content)
    return wire
