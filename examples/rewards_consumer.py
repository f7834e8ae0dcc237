"""Print each reward that Headrace computes, one JSON object per line.

Needs kafka-python and the standard library; nothing of Headrace. The topic carries two events:
``headrace.reward.v1`` and ``headrace.safety.v1``; the header ``ce_type`` says which.

    python examples/rewards_consumer.py --kafka 127.0.0.1:9092 --group my-dashboard
"""

from __future__ import annotations

import argparse
import json

from kafka import KafkaConsumer


def main() -> None:
    """Read from where the group left off, until ``--count`` rewards or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka", default="127.0.0.1:9092", metavar="HOST:PORT")
    parser.add_argument("--prefix", default="", help="the setting kafka.prefix")
    parser.add_argument("--group", default="rewards-example")
    parser.add_argument("--count", type=int, default=0, help="stop after so many; 0 means never")
    options = parser.parse_args()

    consumer = KafkaConsumer(
        f"{options.prefix}rewards",
        bootstrap_servers=options.kafka,
        group_id=options.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        bootstrap_timeout_ms=10_000,
    )
    seen = 0
    taken: set[str] = set()
    try:
        for record in consumer:
            if dict(record.headers).get("ce_type") == b"headrace.reward.v1":
                reward = json.loads(record.value)
                # Delivery is at least once; of one decision's rewards the last one printed holds.
                if reward["id"] not in taken:
                    taken.add(reward["id"])
                    seen += 1
                    print(json.dumps(summary(reward)), flush=True)
            consumer.commit()
            if options.count and seen >= options.count:
                break
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()


def summary(reward: dict[str, object]) -> dict[str, object]:
    """Return what a dashboard needs; ``value`` is None when nobody reacted."""
    names = ["decision_id", "revision", "status", "value", "components"]
    return {name: reward[name] for name in names}


if __name__ == "__main__":
    main()
