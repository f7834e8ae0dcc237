"""Equal rules have equal digests, in any process; whatever the layers look for changes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from contracts.settings import Settings, Streams
from contracts.settings.guard import Guard
from contracts.settings.streams import DisallowedTopic
from guard.rules import compile_rules, digest_of

STREAMS = (
    Streams(safe_actions=("refuse",)),
    Streams(disallowed_topics=(DisallowedTopic(name="one", patterns=("w2",)),)),
    Streams(disallowed_topics=(DisallowedTopic(name="one", patterns=("w3",)),)),
)
PRINT = """
from contracts.settings import Settings
from guard.rules import compile_rules, digest_of
print(digest_of(compile_rules(Settings())))
"""


def _digest(**guard: object) -> str:
    return digest_of(compile_rules(Settings(guard=msgspec.convert(guard, Guard))))


def test_every_rule_and_the_content_of_its_file_is_in_the_digest(tmp_path: Path) -> None:
    strings = tmp_path / "strings"
    strings.write_text("a string that nobody says\n")
    plain = _digest()
    found = [
        plain,
        _digest(forbidden_tools=["search"]),
        _digest(layers={"disallowed_content": "off"}),
        _digest(refusal="No."),
        _digest(disallowed_content=[{"name": "one", "terms": ["w1"]}]),
        _digest(disallowed_content=[{"name": "two", "terms": ["w1"]}]),
        _digest(canary_strings_file=str(strings)),
        *(digest_of(compile_rules(Settings(streams=streams))) for streams in STREAMS),
    ]
    strings.write_text("another that nobody says\n")
    found.append(_digest(canary_strings_file=str(strings)))
    assert len(set(found)) == len(found)
    assert _digest() == plain


def test_the_digest_is_the_same_in_another_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == _digest()
