"""Send one rating to Headrace from any program that can write to Kafka.

Needs kafka-python and the standard library; nothing of Headrace. ``decision_id`` comes with each
answer of the gateway, in the body as ``headrace.decision_id`` and in ``X-Headrace-Decision-Id``,
and so does ``headrace.feedback_token``.

    python examples/feedback_producer.py --kafka 127.0.0.1:9092 \
        --decision 0193... --session chat-17 --user anna --score 1 --token 5f0a...
"""

from __future__ import annotations

import argparse
import json
import uuid
from datetime import UTC, datetime

from kafka import KafkaProducer


def feedback(decision: str, session: str, user: str, score: float, token: str) -> dict[str, object]:
    """Return the event as docs/schemas/headrace.feedback.v1.json describes it."""
    return {
        "id": str(uuid.uuid4()),
        "time": datetime.now(UTC).isoformat(),
        "decision_id": decision,
        "session_id": session,
        "user_id": user,
        "kind": "rating",
        "score": score,
        "token": token,
        "source": "kafka",
    }


def main() -> None:
    """Send the rating and print its id once the broker has it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka", default="127.0.0.1:9092", metavar="HOST:PORT")
    parser.add_argument("--prefix", default="", help="the setting kafka.prefix")
    parser.add_argument("--decision", required=True)
    parser.add_argument("--session", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--score", type=float, required=True, help="-1 (bad) to 1 (good)")
    parser.add_argument("--token", required=True, help="headrace.feedback_token of the answer")
    options = parser.parse_args()

    event = feedback(options.decision, options.session, options.user, options.score, options.token)
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event["id"],
        "ce_type": "headrace.feedback.v1",
        "ce_source": "my-app",
        "ce_time": event["time"],
        "content-type": "application/json",
    }
    producer = KafkaProducer(
        bootstrap_servers=options.kafka,
        acks="all",
        enable_idempotence=True,
        bootstrap_timeout_ms=10_000,
    )
    delivery = producer.send(
        f"{options.prefix}feedback",
        key=options.session.encode(),  # keeps a session's events in order
        value=json.dumps(event).encode(),
        headers=[(name, str(value).encode()) for name, value in headers.items()],
    )
    delivery.get(timeout=30)
    producer.close()
    print(event["id"])


if __name__ == "__main__":
    main()
