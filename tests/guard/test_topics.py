"""Which declared topic a question is about."""

from __future__ import annotations

from contracts.events import Message
from contracts.settings import QuestionTopic
from guard.topics import OTHER, topic_finder

TOPICS = (
    QuestionTopic(name="billing", patterns=(r"\binvoice\b", r"\brefund\b")),
    QuestionTopic(name="roaming", patterns=(r"\babroad\b",)),
)


def asked(*texts: str) -> tuple[Message, ...]:
    return tuple(Message(role="user", content=text) for text in texts)


def test_the_first_topic_that_fits_the_newest_question_has_it() -> None:
    topic_of = topic_finder(TOPICS)
    assert topic_of(asked("Where is my INVOICE?")) == "billing"
    assert topic_of(asked("A refund while abroad?")) == "billing"
    assert topic_of(asked("Where is my invoice?", "And abroad?")) == "roaming"
    assert topic_of(asked("Hello")) == OTHER


def test_what_the_assistant_said_is_no_question() -> None:
    said = Message(role="assistant", content="Your invoice is ready.")
    assert topic_finder(TOPICS)((*asked("Thanks!"), said)) == OTHER
    assert topic_finder(TOPICS)(()) == topic_finder(())(asked("invoice")) == OTHER
