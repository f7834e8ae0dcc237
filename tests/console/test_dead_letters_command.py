from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from console import log_access
from console.letter_log import LetterRow
from console.letter_text import without_content
from console.main import main
from contracts.audit import AuditChain, broken_links
from contracts.broker import Received, make_producer, read_to_end
from contracts.clock import SystemClock
from contracts.codec import Headers, encode, header, to_json
from contracts.dead_letters import dead_letter
from contracts.events import AuditRecord, DeadLetter, Feedback
from contracts.ids import NewId
from contracts.settings import Gateway, Kafka, Settings
from contracts.topics import AUDIT, DEAD_LETTERS, DECISIONS, FEEDBACK, TOPICS, Topic
from streams.admission import admit
from streams.flow import Flow
from tests.topic_log import events, publish, write

Run = Callable[..., Result]
NOW = datetime.now(UTC)
WORDS = "my number is 555"
SECRET = "0123456789abcdef" * 4
BAD = to_json({"id": "f1", "kind": "rating", "reason": WORDS, "score": 2})
TYPE: Headers = [("ce_type", b"headrace.feedback.v1")]
WHY = ("--because", "the producer is cured", "--operator", "ada")


@pytest.fixture
def headrace(kafka: Kafka, tmp_path: Path) -> Run:
    """Runs ``headrace dead-letters`` on this test's topics."""
    path = tmp_path / "headrace.yaml"
    address = {"bootstrap": kafka.bootstrap, "prefix": kafka.prefix}
    path.write_text(json.dumps({"state_dir": str(tmp_path), "kafka": address}))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--settings", str(path), "dead-letters", *arguments])

    return run


class Log:
    """This test's topics, with streams that read them when asked to."""

    def __init__(self, kafka: Kafka, new_id: NewId) -> None:
        self.kafka = kafka
        self._producer = make_producer(kafka, "test-writer")
        settings = Settings(kafka=kafka, gateway=Gateway(feedback_secret=SECRET))
        self.flow = Flow(settings, AuditChain("streams", SystemClock(), new_id), source="test")
        self.flow.assign(range(kafka.partitions))

    def send(
        self, value: bytes | None, headers: Headers = TYPE, key: bytes | None = b"session-1"
    ) -> Received:
        name = FEEDBACK.full_name(self.kafka.prefix)
        sent = self._producer.send(name, value=value, key=key, headers=headers).get(timeout=30)
        return Received(FEEDBACK, sent.partition, sent.offset, key, value, headers)

    def refuse(self, record: Received, reason: Any, detail: str = "no") -> DeadLetter:
        """Put a record into the dead letters for any reason."""
        name = record.topic.full_name(self.kafka.prefix)
        letter = dead_letter(record, name, reason, detail, NOW)
        publish(self.kafka, DEAD_LETTERS, letter)
        return letter

    def stream(self) -> None:
        """Read what is new as the streams do, and deliver what they make of it."""
        records = list(read_to_end(self.kafka, (DECISIONS, FEEDBACK), "test-streams"))
        step = self.flow.read(records, datetime.now(UTC))
        write(self.kafka, *step.records)
        self.flow.settle(step)

    def of(self, topic: Topic) -> list[Received]:
        return list(read_to_end(self.kafka, (topic,), "test-reader"))

    def letters(self) -> list[DeadLetter]:
        return sorted(events(self.kafka, DEAD_LETTERS, DeadLetter), key=lambda one: one.time)

    def replays(self) -> list[AuditRecord]:
        found = events(self.kafka, AUDIT, AuditRecord)
        return [one for one in found if one.action == "dead-letter.replayed"]

    def close(self) -> None:
        self._producer.close()


@pytest.fixture
def log(kafka: Kafka, new_id: NewId) -> Iterator[Log]:
    opened = Log(kafka, new_id)
    yield opened
    opened.close()


def told(answer: Result, code: int = 0) -> Any:
    assert answer.exit_code == code, answer.output
    return json.loads(answer.stdout)


def outcomes(answer: Result, code: int = 0) -> list[str]:
    return [one["outcome"] for one in told(answer, code)]


def rating(decision_id: str = "d-1") -> Feedback:
    return Feedback(
        id="f-1",
        time=NOW,
        decision_id=decision_id,
        session_id="session-1",
        user_id="user-1",
        kind="rating",
        score=1.0,
    )


def test_list_shows_where_each_letter_comes_from_and_why(headrace: Run, log: Log) -> None:
    record = log.send(BAD)
    log.send(b"{")
    log.stream()
    text = headrace("list").output
    assert f"feedback/{record.partition}@{record.offset}" in text
    assert "malformed" in text
    rows = told(headrace("list", "--json"))
    assert {row["reason"]: row["value_bytes"] for row in rows} == {
        "invalid": len(BAD),
        "malformed": 1,
    }
    full_name = FEEDBACK.full_name(log.kafka.prefix)
    for arguments, count in (
        (("--reason", "invalid"), 1),
        (("--reason", "quarantined"), 0),
        (("--topic", "feedback"), 2),
        (("--topic", full_name), 2),
        (("--topic", "samples"), 0),
        (("--since", "5m"), 2),
        (("--since", (NOW + timedelta(days=1)).isoformat()), 0),
        (("--since", "2001-01-01"), 2),
    ):
        assert len(told(headrace("list", "--json", *arguments))) == count, arguments


def test_what_people_wrote_is_shown_only_when_asked_for(headrace: Run, log: Log) -> None:
    headers = [*TYPE, ("note", WORDS.encode()), ("ce_subject", WORDS.encode())]
    record = log.send(BAD, headers)
    letter = log.refuse(record, "failed", f"ValueError({WORDS!r}) at 'score' \x1b[2J")
    for arguments in (("list",), ("list", "--json"), ("show", letter.id), ("show", letter.id[:9])):
        closed = headrace(*arguments)
        assert closed.exit_code == 0, closed.output
        assert WORDS not in closed.output
        assert "\x1b" not in closed.output
    closed = headrace("show", letter.id)
    for words in ("session-1", "ce_type: headrace.feedback.v1", "headers   2 more", "kind: string"):
        assert words in closed.output
    view = told(headrace("show", letter.id, "--json"))
    assert (view["value"], view["hidden_headers"]) == (None, 2)
    assert view["fields"]["score"] == "number"
    opened = headrace("show", letter.id, "--content")
    assert opened.output.count(WORDS) == 4
    assert "\x1b" not in opened.output
    view = told(headrace("show", letter.id, "--content", "--json"))
    assert json.loads(view["value"]) == json.loads(BAD)


@pytest.mark.parametrize(
    ("value", "encoding", "shown"),
    [(b"\xff\xfe", "base64", "//4="), (b"half\x1b a {", "text", "half\\x1b a {")],
)
def test_a_value_that_is_no_json_is_shown_as_text_or_base64(
    headrace: Run, log: Log, value: bytes, encoding: str, shown: str
) -> None:
    letter = log.refuse(log.send(value), "malformed")
    view = told(headrace("show", letter.id, "--content", "--json"))
    assert (view["encoding"], view["value"], view["fields"]) == (encoding, shown, {})


def test_a_replay_sends_the_whole_record_again_with_the_letter_it_came_from(
    headrace: Run, log: Log
) -> None:
    headers = [*TYPE, ("traceparent", b"00-aa-bb-01"), ("odd", b"\xff"), ("twice", b"1")]
    record = log.send(BAD, [*headers, ("twice", b"2")])
    log.stream()
    (letter,) = log.letters()
    (one,) = told(headrace("replay", letter.id[:8], *WHY, "--json"))
    assert (one["outcome"], one["source"], one["offset"]) == ("sent", "topic", record.offset + 1)
    first, second = log.of(FEEDBACK)
    assert (second.partition, second.key, second.value) == (first.partition, first.key, BAD)
    assert second.headers == [*first.headers, ("headrace_replay_of", letter.id.encode())]
    (audited,) = log.replays()
    assert (audited.subject, audited.reason) == (letter.id, "the producer is cured")
    assert (audited.detail["operator"], audited.detail["new_offset"]) == ("ada", one["offset"])
    (row,) = told(headrace("list", "--json"))
    assert (row["replays"], row["operator"]) == (1, "ada")
    assert "by ada" in headrace("list").output
    assert "by ada" in headrace("show", letter.id).output


def test_replaying_twice_sends_once_unless_asked_to_send_again(headrace: Run, log: Log) -> None:
    for _ in range(3):
        log.send(BAD)
    log.stream()
    ids = [letter.id for letter in log.letters()]
    assert outcomes(headrace("replay", ids[0], ids[0], *WHY, "--json")) == ["sent"]
    assert outcomes(headrace("replay", ids[0], *WHY, "--json")) == ["replayed already"]
    found = outcomes(headrace("replay", "--reason", "invalid", *WHY, "--json"))
    assert sorted(found) == ["replayed already", "sent", "sent"]
    assert set(outcomes(headrace("replay", *ids, *WHY, "--json"))) == {"replayed already"}
    assert len(log.of(FEEDBACK)) == 6
    assert outcomes(headrace("replay", ids[0], *WHY, "--again", "--json")) == ["sent"]
    assert len(log.of(FEEDBACK)) == 7
    chains = {one.producer for one in log.replays()}
    assert len(chains) == 3
    for chain in chains:
        assert broken_links(one for one in log.replays() if one.producer == chain) == []


def test_a_dry_run_sends_and_audits_nothing(headrace: Run, log: Log) -> None:
    log.send(BAD)
    log.stream()
    answer = headrace("replay", "--reason", "invalid", "--dry-run")
    assert answer.exit_code == 0
    assert "would be sent" in answer.output
    assert len(log.of(FEEDBACK)) == 1
    assert log.replays() == []


def test_a_record_that_is_still_bad_gets_a_letter_of_its_own_place_and_no_loop(
    headrace: Run, log: Log
) -> None:
    log.send(BAD)
    log.stream()
    (first,) = log.letters()
    told(headrace("replay", first.id, *WHY, "--json"))
    log.stream()
    log.stream()
    rows = told(headrace("list", "--json"))
    (second,) = [row for row in rows if row["id"] != first.id]
    assert (second["offset"], second["replay_of"]) == (first.offset + 1, first.id)
    assert second["replays"] == 0
    assert outcomes(headrace("replay", first.id, *WHY, "--json")) == ["replayed already"]
    assert len(log.of(FEEDBACK)) == 2
    assert outcomes(headrace("replay", second["id"], *WHY, "--json")) == ["sent"]
    newest = log.of(FEEDBACK)[-1]
    assert [raw for name, raw in newest.headers if name == "headrace_replay_of"] == [
        second["id"].encode()
    ]


def test_feedback_that_is_let_out_of_the_quarantine_counts_once_after_its_replays(
    headrace: Run, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = rating()
    sent = encode(FEEDBACK, event, source="test")
    log.send(sent.value, sent.headers, sent.key)
    log.stream()
    (letter,) = log.letters()
    assert (letter.reason, letter.detail.partition(":")[0]) == ("quarantined", "unproven")
    assert log.flow.counts["feedback"] == 0

    arguments = ("replay", "--reason", "quarantined", *WHY, "--again", "--json")
    (failed,) = told(headrace(*arguments), 1)
    assert "set HEADRACE_GATEWAY__FEEDBACK_SECRET" in failed["error"]
    monkeypatch.setenv("HEADRACE_GATEWAY__FEEDBACK_SECRET", SECRET)
    assert outcomes(headrace(*arguments)) == outcomes(headrace(*arguments)) == ["sent"]
    log.stream()
    assert log.flow.counts["feedback"] == 1
    assert log.flow.counts["duplicates"] == 1
    assert len(log.letters()) == 1


def test_a_mark_made_with_another_secret_lets_nothing_out_of_the_quarantine(
    headrace: Run, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = encode(FEEDBACK, rating(), source="test")
    log.send(sent.value, sent.headers, sent.key)
    log.stream()
    monkeypatch.setenv("HEADRACE_GATEWAY__FEEDBACK_SECRET", SECRET[::-1])
    assert outcomes(headrace("replay", log.letters()[0].id, *WHY, "--json")) == ["sent"]
    log.stream()
    assert [letter.reason for letter in log.letters()] == 2 * ["quarantined"]


def test_a_letter_that_holds_a_part_is_replayed_whole_while_the_topic_has_the_record(
    headrace: Run, log: Log
) -> None:
    large = b'{"z": "' + b"z" * 950_000 + b'"}'
    log.send(large)
    log.stream()
    (letter,) = log.letters()
    assert "the first 524288 are kept" in headrace("show", letter.id).output
    (one,) = told(headrace("replay", letter.id, *WHY, "--json"))
    assert (one["outcome"], one["source"]) == ("sent", "topic")
    assert [record.value for record in log.of(FEEDBACK)] == [large, large]


def test_the_letters_copy_is_sent_when_another_record_lies_at_its_place(
    headrace: Run, log: Log
) -> None:
    other = log.send(b"of a log that began anew")
    for offset in (other.offset, other.offset + 7):
        copy = Received(FEEDBACK, other.partition, offset, b"session-1", BAD, TYPE)
        letter = log.refuse(copy, "invalid")
        (one,) = told(headrace("replay", letter.id, *WHY, "--json"))
        assert (one["outcome"], one["source"]) == ("sent", "letter")
        newest = log.of(FEEDBACK)[-1]
        assert (newest.key, newest.value) == (b"session-1", BAD)
        assert header(newest.headers, "ce_type") == "headrace.feedback.v1"


def test_a_part_whose_record_has_gone_fails_alone_and_says_what_to_do(
    headrace: Run, log: Log
) -> None:
    gone = log.refuse(Received(FEEDBACK, 0, 99, b"session-1", b"z" * 900_001, TYPE), "oversized")
    log.send(BAD)
    log.stream()
    there = next(letter for letter in log.letters() if letter.id != gone.id)
    answer = headrace("replay", gone.id, there.id, *WHY)
    assert answer.exit_code == 1
    assert "524288 of its 900001 bytes; send it anew from its producer" in answer.output
    assert [one.subject for one in log.replays()] == [there.id]


def test_a_letter_of_another_prefix_cannot_be_replayed(headrace: Run, log: Log) -> None:
    letter = dead_letter(log.send(BAD), "elsewhere-feedback", "invalid", "no", NOW)
    publish(log.kafka, DEAD_LETTERS, letter)
    answer = headrace("replay", letter.id, *WHY)
    assert answer.exit_code == 1
    assert "no topic of these settings" in answer.output


@pytest.mark.parametrize(("key", "value"), [(b"k", None), (None, b"x"), (None, b"")])
def test_records_without_key_or_value_are_replayed(
    headrace: Run, log: Log, key: bytes | None, value: bytes | None
) -> None:
    log.send(value, [], key)
    log.stream()
    assert outcomes(headrace("replay", "--reason", "malformed", *WHY, "--json")) == ["sent"]
    first, second = log.of(FEEDBACK)
    assert (second.key, second.value, second.partition) == (key, value, first.partition)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("replay", "feed", *WHY), "no dead letter has id 'feed'"),
        (("replay", "aaaa0001", "feed", *WHY), "no dead letter has id 'feed'"),
        (("replay", "aaaa", *WHY), "begins 2 ids: aaaa0001, aaaa0002"),
        (("replay", "", *WHY), "no dead letter has id ''"),
        (("replay", *WHY), "give LETTER_IDS, or --reason"),
        (("replay", "aaaa0001", "--reason", "invalid", *WHY), "give LETTER_IDS, or --reason"),
        (("replay", "aaaa0001", "--topic", "feedback", *WHY), "go with --reason"),
        (("replay", "aaaa0001"), "--because has 0 characters"),
        (("show", "feed"), "no dead letter has id 'feed'"),
        (("show", "aaaa"), "begins 2 ids"),
        (("list", "--since", "yesterday"), "--since 'yesterday' is no moment"),
        (("list", "--since", "99999999999d"), "is no moment"),
        (("forget", "aaaa0001"), "No such command"),
    ],
)
def test_wrong_usage_sends_nothing_and_exits_with_2(
    headrace: Run, log: Log, arguments: tuple[str, ...], said: str
) -> None:
    record = log.send(BAD)
    for letter_id in ("aaaa0001", "aaaa0002"):
        publish(
            log.kafka,
            DEAD_LETTERS,
            DeadLetter(
                id=letter_id,
                time=NOW,
                topic=FEEDBACK.full_name(log.kafka.prefix),
                partition=record.partition,
                offset=record.offset,
                reason="invalid",
                detail="no",
            ),
        )
    answer = headrace(*arguments)
    assert answer.exit_code == 2, answer.output
    assert said in answer.output
    assert len(log.of(FEEDBACK)) == 1


def test_an_empty_topic_lists_nothing_and_replays_nothing(headrace: Run, log: Log) -> None:
    assert headrace("list").output == "no dead letters\n"
    assert told(headrace("list", "--json")) == []
    assert headrace("show", "aaaa").exit_code == 2
    answer = headrace("replay", "--reason", "invalid", *WHY)
    assert answer.exit_code == 0
    assert "no dead letter was refused for 'invalid'" in answer.output
    assert all(log.of(topic) == [] for topic in TOPICS)


def test_a_broker_that_does_not_answer_exits_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_access, "ANSWER_SECONDS", 0.1)
    path = tmp_path / "headrace.yaml"
    path.write_text(json.dumps({"state_dir": str(tmp_path), "kafka": {"bootstrap": "127.0.0.1:9"}}))
    for arguments in (("list",), ("show", "a"), ("replay", "a", *WHY)):
        answer = CliRunner().invoke(main, ["--settings", str(path), "dead-letters", *arguments])
        assert answer.exit_code == 3, answer.output
        assert "127.0.0.1:9 did not answer" in answer.output


def test_a_detail_cut_within_what_it_quotes_shows_nothing_of_it() -> None:
    text = "I don't want that known: " + "secret " * 300
    headers = [("ce_type", text.encode())]
    letter = admit(Received(FEEDBACK, 0, 0, b"k", b"{}", headers), "feedback", datetime.now(UTC))
    assert isinstance(letter, DeadLetter)
    assert "secret" in letter.detail
    row = LetterRow(
        **{name: getattr(letter, name) for name in ("id", "time", "topic", "partition", "offset")},
        reason=letter.reason,
        detail=letter.detail,
        value_bytes=letter.value_bytes,
        letter_partition=0,
        letter_offset=0,
    )
    assert "secret" not in without_content(row).detail
