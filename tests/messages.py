"""Messages as an assistant writes them."""

from __future__ import annotations

from contracts.events import FunctionCall, Message, ToolCall


def says(text: str) -> Message:
    """Return a plain answer."""
    return Message(role="assistant", content=text)


def calls(name: str, arguments: str = "{}") -> Message:
    """Return one tool call; ``arguments`` are the raw text, sound or not."""
    call = ToolCall(id="c", function=FunctionCall(name, arguments))
    return Message(role="assistant", tool_calls=(call,))
