"""Programs that know nothing of Headrace can send feedback and read rewards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.broker import events_to_end, read_to_end
from contracts.codec import header
from contracts.events import Component, Feedback
from contracts.settings import Kafka
from contracts.topics import FEEDBACK, REWARDS
from tests.stream_events import reward, safety
from tests.topic_log import publish

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, kafka: Kafka, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example away from the checkout, so that it could not import it by accident."""
    return subprocess.run(
        [
            *(sys.executable, "-P", str(EXAMPLES / name)),
            *("--kafka", kafka.bootstrap, "--prefix", kafka.prefix),
            *arguments,
        ],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_rating_of_a_foreign_producer_is_a_valid_feedback_event(kafka: Kafka) -> None:
    arguments = ["--decision", "d1", "--session", "s1", "--user", "anna", "--score", "-0.5"]
    arguments += ["--token", "5f0a"]
    done = run("feedback_producer.py", kafka, *arguments)
    assert done.returncode == 0, done.stderr
    ((record, event),) = events_to_end(kafka, (FEEDBACK,), "test-reader")
    assert isinstance(event, Feedback)
    assert (event.id, event.decision_id, event.session_id) == (done.stdout.strip(), "d1", "s1")
    assert (event.user_id, event.kind, event.score) == ("anna", "rating", -0.5)
    assert event.token == "5f0a"
    assert record.key == b"s1"
    assert header(record.headers, "ce_type") == "headrace.feedback.v1"
    assert header(record.headers, "ce_id") == event.id


def test_foreign_consumer_prints_each_reward_once_and_nothing_else(kafka: Kafka) -> None:
    rating = Component(name="rating", value=1.0, weight=1.0, rule="x", event_ids=("f1",))
    first, second = reward("d1", None), reward("d2", 0.5, components=(rating,))
    again = reward("d1", 1.0, revision=1)
    publish(kafka, REWARDS, safety(), first, first, second, again)
    done = run("rewards_consumer.py", kafka, "--count", "3", "--group", f"{kafka.prefix}group")
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["decision_id"], r["revision"], r["value"]) for r in printed] == [
        ("d1", 0, None),
        ("d2", 0, 0.5),
        ("d1", 1, 1.0),
    ]
    assert printed[1]["components"][0]["event_ids"] == ["f1"]


def test_consumer_goes_on_where_its_group_left_off(kafka: Kafka) -> None:
    group = f"{kafka.prefix}group"
    publish(kafka, REWARDS, reward("d1", 0.5))
    run("rewards_consumer.py", kafka, "--count", "1", "--group", group)
    publish(kafka, REWARDS, reward("d2", 0.25))
    done = run("rewards_consumer.py", kafka, "--count", "1", "--group", group)
    assert [json.loads(line)["decision_id"] for line in done.stdout.splitlines()] == ["d2"]
    assert len(list(read_to_end(kafka, (REWARDS,), "test-reader"))) == 2


@pytest.mark.parametrize("name", ["feedback_producer.py", "rewards_consumer.py"])
def test_example_imports_nothing_of_headrace(name: str) -> None:
    imported = [
        line.split()[1].split(".")[0]
        for line in (EXAMPLES / name).read_text().splitlines()
        if line.startswith(("import ", "from "))
    ]
    assert set(imported) <= {"__future__", "argparse", "datetime", "json", "kafka", "uuid"}
