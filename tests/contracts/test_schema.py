"""The published JSON Schemas and the AsyncAPI document agree with the code."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError

from contracts.codec import ce_type, decode, to_json
from contracts.errors import CodecError
from contracts.events import EVENTS, Event
from contracts.schema import DOCS, documents, event_schema, main, stale, write
from contracts.topics import FEEDBACK, TOPICS

HERE = Path(__file__).parent
FORMATS = FormatChecker(formats=())


@FORMATS.checks("date-time", raises=ValueError)
def is_time_with_offset(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


def validator(kind: type[Event]) -> Draft202012Validator:
    schema = json.loads((DOCS / "schemas" / f"{ce_type(kind)}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=FORMATS)


def golden(kind: type[Event], folder: str) -> Any:
    return json.loads((HERE / folder / f"{ce_type(kind)}.json").read_text())


def test_published_documents_are_fresh() -> None:
    assert stale(DOCS) == [], "run: python -m contracts.schema"


def test_check_names_what_is_stale(tmp_path: Path) -> None:
    write(tmp_path)
    assert stale(tmp_path) == []
    (tmp_path / "asyncapi.yaml").write_text("asyncapi: 2.0.0\n")
    (tmp_path / "schemas" / "headrace.old.v1.json").write_text("{}")
    (tmp_path / "schemas" / "headrace.audit.v1.json").unlink()
    assert stale(tmp_path) == [
        "asyncapi.yaml",
        "schemas/headrace.audit.v1.json",
        "schemas/headrace.old.v1.json",
    ]


def test_command_refuses_unknown_arguments() -> None:
    assert main(["--chek"]) == 2
    assert main(["--check"]) == 0


@pytest.mark.parametrize("folder", ["golden", "golden_minimal"])
@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.TYPE)
def test_golden_message_satisfies_its_schema(kind: type[Event], folder: str) -> None:
    validator(kind).validate(golden(kind, folder))


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.TYPE)
def test_encoded_event_satisfies_its_schema(kind: type[Event]) -> None:
    topic = next(topic for topic in TOPICS if kind in topic.events)
    raw = to_json(golden(kind, "golden"))
    event = decode(topic, raw, [("ce_type", ce_type(kind).encode())])
    validator(kind).validate(json.loads(to_json(event)))


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.TYPE)
@pytest.mark.parametrize("change", [{"id": ""}, {"time": "2026-11-22T15:30:00"}, {"id": 7}])
def test_schema_refuses_what_the_codec_refuses(kind: type[Event], change: dict[str, Any]) -> None:
    topic = next(topic for topic in TOPICS if kind in topic.events)
    raw = golden(kind, "golden") | change
    with pytest.raises(ValidationError):
        validator(kind).validate(raw)
    with pytest.raises(CodecError, match="invalid"):
        decode(topic, to_json(raw), [("ce_type", ce_type(kind).encode())])


@pytest.mark.parametrize("kind", ["rating", "correction", "outcome", "report"])
@pytest.mark.parametrize("field", ["score", "correction", "reason"])
@pytest.mark.parametrize("value", ["absent", None])
def test_schema_and_codec_agree_on_what_each_kind_of_feedback_needs(
    kind: str, field: str, value: str | None
) -> None:
    feedback = next(event for event in EVENTS if event.TYPE == "headrace.feedback")
    raw = golden(feedback, "golden") | {"kind": kind, field: None}
    if value == "absent":
        del raw[field]
    try:
        decode(FEEDBACK, to_json(raw), None)
        accepted = True
    except CodecError:
        accepted = False
    assert validator(feedback).is_valid(raw) is accepted


def test_every_schema_stands_alone() -> None:
    for kind in EVENTS:
        text = json.dumps(event_schema(kind))
        assert '"$ref": "#/$defs/' in text
        assert text.count('"$ref"') == text.count('"$ref": "#/$defs/')


def test_asyncapi_references_resolve() -> None:
    document = yaml.safe_load((DOCS / "asyncapi.yaml").read_text())
    files = {f"./{path.as_posix()}" for path in documents()}
    for reference in references(document):
        if not reference.startswith("#/"):
            assert reference in files
            continue
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
        assert node


def test_asyncapi_tells_the_table_of_topics() -> None:
    document = yaml.safe_load((DOCS / "asyncapi.yaml").read_text())
    assert document["asyncapi"] == "3.0.0"
    for topic in TOPICS:
        channel = document["channels"][topic.name]
        assert channel["address"] == "{prefix}" + topic.name
        assert set(channel["messages"]) == {ce_type(kind) for kind in topic.events}
        kafka = channel["bindings"]["kafka"]
        assert kafka["topicConfiguration"] == {"cleanup.policy": [topic.cleanup]}
        assert topic.writers in document["operations"][f"write-{topic.name}"]["summary"]
        assert topic.readers in document["operations"][f"read-{topic.name}"]["summary"]
        message = document["components"]["messages"][ce_type(topic.events[0])]
        assert message["bindings"]["kafka"]["key"]["description"] == topic.key_name


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    if isinstance(node, list):
        return [found for item in node for found in references(item)]
    return []
