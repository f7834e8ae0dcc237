"""What others wrote, on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text in one line, with what could steer a terminal escaped."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
