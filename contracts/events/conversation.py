"""Chat messages and tool calls, in the OpenAI wire form."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from contracts.events.event import Id


class FunctionCall(Struct, frozen=True):
    """Name and JSON-encoded arguments of a tool call."""

    name: Id
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True):
    """One call in an assistant message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One chat message, field by field as in the OpenAI API."""

    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


def text_of(message: Message) -> str:
    """Return the text of a message, joining the text parts of structured content."""
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(str(part.get("text", "")) for part in message.content)
