"""Conversations as text by a tokenizer's chat template, on one date: templates may write today's,
and what is learned may not depend on the clock.

Prompts of the log are tokens already, with the date of their day, and do not come here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

DAY = datetime(2024, 7, 26)
"""The date that the templates of Llama 3 write where nobody tells them one."""


def templated(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    *,
    ask: bool = False,
) -> str:
    """Return messages as text; with ``ask`` the assistant's turn begins after them.

    ``strftime_now`` is what templates ask for the date; an argument of that name goes before the
    one that transformers gives them.
    """
    text: str = tokenizer.apply_chat_template(
        list(messages),
        tools=list(tools) or None,
        add_generation_prompt=ask,
        tokenize=False,
        strftime_now=DAY.strftime,
    )
    return text
