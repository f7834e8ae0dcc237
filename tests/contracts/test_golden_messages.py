"""Messages of every published event version must decode for ever.

``golden`` holds the newest form of each version, with every field; it grows with optional fields.
``golden_minimal`` and ``golden_published`` (the golden messages of each release) never change:
``published.sha256`` has their checksums, and CONTRIBUTING.md says how a release adds to them.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import fields

from contracts.codec import ce_type, decode, encode, to_json
from contracts.events import EVENTS, Event
from contracts.topics import TOPICS, Topic

GOLDEN = Path(__file__).parent / "golden"
MINIMAL = Path(__file__).parent / "golden_minimal"
PUBLISHED = Path(__file__).parent / "golden_published"
CHECKSUMS = Path(__file__).parent / "published.sha256"
CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"

NO_LONGER_READ = {
    ("0.1.0", "headrace.rollout.v1", "evidence"): {
        "violations",
        "reward_count",
        "reward_sum",
        "reward_sum_squares",
        "log_wealth",
        "e_value",
        "offenders",
    }
}
"""Of published messages: counts of a test that is gone. The state decodes, and the controller ends
a rollout under other rules than its own."""


def topic_of(kind: type[Event]) -> Topic:
    return next(topic for topic in TOPICS if kind in topic.events)


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


def event_of(name: str) -> tuple[Topic, Event]:
    return decoded(GOLDEN / f"{name}.json")


def decoded(path: Path) -> tuple[Topic, Event]:
    kind = next(kind for kind in EVENTS if path.stem.rpartition(".v")[0] == kind.TYPE)
    topic = topic_of(kind)
    event = decode(topic, path.read_bytes(), [("ce_type", path.stem.encode())])
    assert isinstance(event, kind)
    return topic, event


NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.TYPE)
def test_every_event_version_has_a_golden_message(kind: type[Event]) -> None:
    wanted = {f"{kind.TYPE}.v{version}" for version in range(1, kind.VERSION + 1)}
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_golden_message_decodes_to_what_it_says(name: str) -> None:
    _, event = event_of(name)
    raw = json.loads(golden(name))
    decoded = json.loads(to_json(event))
    assert_within(raw, decoded, name)


@pytest.mark.parametrize("name", NAMES)
def test_golden_message_survives_encoding_and_decoding(name: str) -> None:
    topic, event = event_of(name)
    record = encode(topic, event, source="tests")
    assert decode(topic, record.value, record.headers) == event


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.TYPE)
def test_newest_golden_message_fills_every_field(kind: type[Event]) -> None:
    raw = json.loads(golden(ce_type(kind)))
    assert set(raw) == {field.name for field in fields(kind)}


@pytest.mark.parametrize("name", NAMES)
def test_a_newer_writers_extra_fields_are_ignored(name: str) -> None:
    topic, event = event_of(name)
    raw = json.loads(golden(name)) | {"field_of_the_future": {"deep": [1, None]}}
    assert decode(topic, to_json(raw), [("ce_type", name.encode())]) == event


@pytest.mark.parametrize("path", sorted(MINIMAL.glob("*.json")), ids=lambda path: path.stem)
def test_message_with_only_what_version_one_required_decodes(path: Path) -> None:
    _, event = decoded(path)
    assert_within(json.loads(path.read_bytes()), json.loads(to_json(event)), path.stem)


@pytest.mark.parametrize(
    "path", sorted(PUBLISHED.glob("*/*.json")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_message_of_every_release_decodes_to_what_it_says_and_can_be_sent_on(path: Path) -> None:
    topic, event = decoded(path)
    raw = json.loads(path.read_bytes())
    for (release, name, field), gone in NO_LONGER_READ.items():
        if (release, name) == (path.parent.name, path.stem):
            raw[field] = {key: raw[field][key] for key in raw[field].keys() - gone}
    assert_within(raw, json.loads(to_json(event)), path.stem)
    record = encode(topic, event, source="tests")
    assert decode(topic, record.value, record.headers) == event


def test_published_messages_are_what_they_were_byte_for_byte() -> None:
    listed = dict(line.split()[::-1] for line in CHECKSUMS.read_text().splitlines())
    files = [*MINIMAL.glob("*.json"), *PUBLISHED.glob("*/*.json")]
    found = {
        path.relative_to(CHECKSUMS.parent).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    assert found == listed, "give an incompatible change a new event version; see CONTRIBUTING.md"


def test_every_release_of_the_changelog_has_its_published_messages() -> None:
    releases = re.findall(r"^## \[(\d[^\]]*)\]", CHANGELOG.read_text(), re.MULTILINE)
    assert releases
    assert set(releases) == {path.name for path in PUBLISHED.iterdir()}
    for folder in PUBLISHED.iterdir():
        assert list(folder.glob("*.json"))


def test_every_event_has_a_minimal_message() -> None:
    assert {f"{kind.TYPE}.v1" for kind in EVENTS} <= {path.stem for path in MINIMAL.glob("*.json")}


def assert_within(written: Any, read: Any, place: str) -> None:
    """Everything written is read back; times may be spelled differently."""
    if isinstance(written, dict):
        assert written.keys() <= read.keys() or all(
            written[key] is None for key in written.keys() - read.keys()
        ), place
        for key in written.keys() & read.keys():
            assert_within(written[key], read[key], f"{place}.{key}")
    elif isinstance(written, list):
        assert len(written) == len(read), place
        for number, (one, other) in enumerate(zip(written, read, strict=True)):
            assert_within(one, other, f"{place}[{number}]")
    elif isinstance(written, str) and place.endswith(("time", "_at")):
        assert msgspec.convert(written, type=datetime) == msgspec.convert(read, type=datetime), (
            place
        )
    else:
        assert written == read, place
