"""Marks of an attempt to override the instructions, by phrases that ordinary questions lack.

Such rules see the plain attempts only; `benchmarks.guard` says how few that is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from guard.hit import Hit

_FORMS = {
    "override": (
        ("ignore", "disregard", "forget", "override", "bypass"),
        (
            r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,40}"
            r"\b(?:previous|prior|above|earlier|system|your|all)\b[^.\n]{0,20}"
            r"\b(?:instructions?|prompts?|rules?|guidelines?|directions?)\b"
        ),
    ),
    "role-change": (
        ("you are now", "act as", "pretend to be", "become"),
        (
            r"\b(?:you are now|act as|pretend to be|become)\b[^.\n]{0,40}"
            r"\b(?:dan|jailbroken|unrestricted|unfiltered|developer mode"
            r"|no (?:rules|restrictions))\b"
        ),
    ),
    "prompt-leak": (
        ("system prompt", "system message", "instructions", "hidden prompt"),
        (
            r"\b(?:reveal|print|show|repeat|output|tell me)\b[^.\n]{0,30}"
            r"\b(?:your|the|hidden|initial)\b[^.\n]{0,20}\b(?:system prompt|system message"
            r"|initial instructions|hidden instructions|hidden prompt)\b"
        ),
    ),
    "no-limits": (
        ("do anything now", "without any", "jailbreak mode"),
        r"\b(?:do anything now|without any (?:restrictions|filters|rules)|jailbreak mode)\b",
    ),
    "chat-markup": (
        ("<|", "inst]", "sys>>"),
        r"<\|(?:im_start|im_end|system|endoftext)\|>|\[/?inst\]|<</?sys>>",
    ),
}
"""For each rule the words one of which it needs, and its form, both in lower case."""

_rules = [(name, words, re.compile(form)) for name, (words, form) in _FORMS.items()]


def injections(text: str) -> Iterator[Hit]:
    """Yield marks of an attempt to override the instructions."""
    lowered = text.lower()
    for name, words, pattern in _rules:
        for word in words:
            if word in lowered:
                for match in pattern.finditer(lowered):
                    yield Hit(name, match[0], match.start())
                break
