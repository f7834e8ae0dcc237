"""The rules of the guard, compiled once from the settings."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contracts.errors import SettingsError
from contracts.settings import Settings
from guard.terms import MAX_TERM, Terms, fold

MIN_CANARY = 8
MAX_CANARIES = 100_000
CLARIFY = "clarify"
"""The safe action that settles nothing: a question back leaves the topic open."""


class Rules(Struct, frozen=True, kw_only=True):
    """What the layers look for. ``modes`` gives the mode of each category of findings.

    ``settling_actions`` and answers that end with ``settling_words`` refuse what was asked before.
    """

    topics: tuple[tuple[str, re.Pattern[str]], ...]
    safe_actions: frozenset[str]
    settling_actions: frozenset[str]
    settling_words: tuple[str, ...]
    canaries: Terms
    content: Terms
    forbidden_tools: frozenset[str]
    max_question_characters: int
    modes: dict[str, str]


def compile_rules(settings: Settings) -> Rules:
    """Compile the rules; SettingsError names a bad list, `re.error` a bad pattern."""
    guard = settings.guard
    modes = msgspec.structs.asdict(guard.layers)
    return Rules(
        topics=tuple(
            (topic.name, re.compile(pattern, re.IGNORECASE))
            for topic in settings.streams.disallowed_topics
            for pattern in topic.patterns
        ),
        safe_actions=frozenset(settings.streams.safe_actions),
        settling_actions=frozenset(settings.streams.safe_actions) - {CLARIFY},
        settling_words=tuple(filter(None, (guard.refusal, guard.escalation))),
        canaries=Terms(_canaries(guard.canary_strings_file), whole=False),
        content=Terms(_content(settings), whole=True),
        forbidden_tools=frozenset(guard.forbidden_tools),
        max_question_characters=guard.max_question_characters,
        modes={name.replace("_", "-"): mode for name, mode in modes.items()},
    )


def digest_of(rules: Rules) -> str:
    """Return the sha256 of all that the rules look for: equal rules have equal digests."""

    def plain(value: Any) -> Any:
        return value.rules if isinstance(value, Terms) else (value.pattern, value.flags)

    return sha256(msgspec.json.encode(rules, enc_hook=plain, order="deterministic")).hexdigest()


def _canaries(name: str) -> dict[str, str]:
    """Return the rule of each canary string: its line, never the string itself."""
    if not name:
        return {}
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{name} cannot be read ({type(error).__name__}) - at `$.guard.canary_strings_file`; "
            "give a UTF-8 file with one string a line"
        ) from error
    if len(lines) > MAX_CANARIES:
        raise SettingsError(f"{name} has {len(lines)} lines, allowed {MAX_CANARIES}; give fewer")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not MIN_CANARY <= len(text) <= MAX_TERM:
            raise SettingsError(
                f"line {number} of {name} has {len(text)} characters, allowed {MIN_CANARY} to "
                f"{MAX_TERM}: a shorter one would be in harmless answers too"
            )
        if text:
            found[text] = f"line-{number}"
    return found


def _content(settings: Settings) -> dict[str, str]:
    found: dict[str, str] = {}
    for content in settings.guard.disallowed_content:
        for term in content.terms:
            if (
                not term.strip()
                or len(term) > MAX_TERM
                or fold(term).split(" ") != term.lower().split()
            ):
                raise SettingsError(
                    f"{term!r} of {content.name!r} is no term - at `$.guard.disallowed_content`; "
                    f"give words with one space between them, {MAX_TERM} characters at most"
                )
            found[term] = content.name
    return found
