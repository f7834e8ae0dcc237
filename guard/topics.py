"""Which declared topic a question is about: the first whose patterns the question matches."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from contracts.events import Message, text_of
from contracts.settings import QuestionTopic

OTHER = "other"
"""The topic of questions that fit none."""

MAX_CHARACTERS = 4_000
"""Of a question, how much is looked at."""


def topic_finder(topics: Sequence[QuestionTopic]) -> Callable[[Sequence[Message]], str]:
    """Return the function that names the topic of a conversation's newest question."""
    compiled = [
        (topic.name, [re.compile(pattern, re.IGNORECASE) for pattern in topic.patterns])
        for topic in topics
    ]

    def topic_of(messages: Sequence[Message]) -> str:
        if not compiled:
            return OTHER
        asked = next((m for m in reversed(messages) if m.role == "user"), None)
        text = text_of(asked)[:MAX_CHARACTERS] if asked else ""
        for name, patterns in compiled:
            if any(pattern.search(text) for pattern in patterns):
                return name
        return OTHER

    return topic_of
