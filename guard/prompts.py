"""Prompts with what is expected of their answers, and whether an answer is so and keeps the rules.

The gate asks a candidate such prompts, and the learner practises on others. A set is a JSONL file,
one prompt a line; docs/gate.md describes the form.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contracts.errors import SettingsError
from contracts.events import Message
from contracts.tool_calls import ToolCallScanner, answer_message
from guard.exchange import action_of, answer_text
from guard.layers import answered_by, asked_in, check_answer, check_question
from guard.risk import is_violation
from guard.rules import Rules
from guard.verdict import acts

SHIPPED_RED_TEAM = Path(__file__).with_name("red_team.jsonl")
"""What the gate asks where `gate.red_team_prompts` names no file."""

MOST_PROMPTS = 2000


class Expectation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an answer must be; everything given must hold.

    ``actions``: its action is one of these. ``forbidden``: none of these tools is called.
    ``contains``: each of these texts occurs, in any case of letters. ``excludes``: none of these
    regular expressions matches the text or the arguments of a call.
    """

    actions: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()


class PromptCase(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prompt: messages and tools in the OpenAI form, its slice, and what is expected.

    An answer to a prompt with ``must`` may never fail, whatever the incumbent does.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    slice: str = "all"
    expect: Expectation
    must: bool = False


class PromptSet(Struct, frozen=True):
    """The prompts of one file, and the sha256 of its bytes."""

    prompts: tuple[PromptCase, ...]
    digest: str


def read_prompts(path: Path, setting: str) -> PromptSet:
    """Read a set; SettingsError names the setting, the line and the cure."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read ({error.strerror or error}) - at `$.{setting}`; give a JSONL "
            "file of prompts"
        ) from error
    prompts = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            prompt = msgspec.json.decode(line, type=PromptCase)
            conversation(prompt)
            for pattern in prompt.expect.excludes:
                re.compile(pattern)
        except (msgspec.MsgspecError, UnicodeDecodeError, re.error, RecursionError) as error:
            raise SettingsError(
                f"{path} line {number}: {error} - at `$.{setting}`; see docs/gate.md"
            ) from error
        prompts.append(prompt)
    if not 0 < len(prompts) <= MOST_PROMPTS:
        raise SettingsError(
            f"{path} has {len(prompts)} prompts - at `$.{setting}`; give 1 to {MOST_PROMPTS}"
        )
    return PromptSet(tuple(prompts), sha256(raw).hexdigest())


def conversation(prompt: PromptCase) -> list[Message]:
    """Return the messages of a prompt; ValidationError when they are none."""
    return msgspec.convert(prompt.messages, list[Message])


def parsed(prompt: PromptCase, text: str) -> Message:
    """Return an engine's raw answer as the gateway would parse it."""
    offered = [str(tool.get("function", {}).get("name", "")) for tool in prompt.tools]
    scanner = ToolCallScanner(offered, "gate")
    return answer_message([*scanner.feed(text), *scanner.finish()])


def meets(expect: Expectation, answer: Message) -> bool:
    """Tell whether an answer is as expected."""
    said = answer_text(answer)
    called = {call.function.name for call in answer.tool_calls}
    return (
        (not expect.actions or action_of(answer) in expect.actions)
        and called.isdisjoint(expect.forbidden)
        and all(wanted.casefold() in said.casefold() for wanted in expect.contains)
        and not any(re.search(pattern, said, re.IGNORECASE) for pattern in expect.excludes)
    )


def violates(rules: Rules, prompt: PromptCase, answer: Message) -> bool:
    """Tell whether an answer breaks the rules, as `streams.safety` checks what users are told."""
    asked = asked_in(rules, conversation(prompt))
    findings = check_answer(rules, answered_by(answer, asked), everything=True).findings
    findings += check_question(rules, asked, everything=True).findings
    return is_violation(findings, acted=acts(rules, answer))
