"""A worker that stood still while others took over its partitions, and then goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from console.local_broker import LocalBroker, remove_dead_members
from contracts.broker import create_topics
from contracts.events import Decision, Feedback, Reward, Sample
from contracts.settings import Settings, Streams, to_environment
from contracts.topics import DECISIONS, FEEDBACK, REWARDS, SAMPLES
from tests.streams.conftest import UNPROVEN
from tests.topic_log import events, publish
from tests.until import until

SECONDS = 60.0

FREEZES = """
import os, signal, sys
from streams.__main__ import main
from streams.delivery import Delivery

send = Delivery.send

async def freeze_once(self, records, *others):
    if any(b'"status":"final"' in (record.value or b"") for record in records):
        Delivery.send = send
        os.kill(os.getpid(), signal.SIGSTOP)
    return await send(self, records, *others)

Delivery.send = freeze_once
sys.exit(main())
"""
"""A worker that stops itself with its first reward in hand."""


def test_a_worker_that_froze_with_a_reward_in_hand_does_not_send_it_after_a_newer_one(
    broker: LocalBroker, decision: Any, feedback: Any, new_id: Any, tmp_path: Path
) -> None:
    kafka = msgspec.structs.replace(broker.kafka, prefix=f"t-{new_id()}-", partitions=1)
    create_topics(kafka)
    streams = Streams(final_signals=("rating",), quarantine=UNPROVEN)
    settings = Settings(state_dir=tmp_path / "state", kafka=kafka, streams=streams)
    made: Decision = decision()
    first, newer = (
        feedback(made, score=score, time=made.time + timedelta(seconds=n))
        for n, score in enumerate((1.0, -1.0))
    )
    logs = [tmp_path / f"log-{number}" for number in (1, 2)]

    def start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **to_environment(settings), "OMP_NUM_THREADS": "1"}
        with log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, *arguments], env=environment, stdout=out, stderr=out
            )

    def wait(what: str, condition: Callable[[], object]) -> None:
        until(what, condition, SECONDS, state=lambda: [log.read_text()[-3000:] for log in logs])

    def rewards() -> list[float | None]:
        return [reward.value for reward in events(kafka, REWARDS, Reward)]

    def tell(event: Decision | Feedback) -> None:
        publish(kafka, DECISIONS if isinstance(event, Decision) else FEEDBACK, event)

    running = [start(logs[0], "-c", FREEZES)]
    try:
        tell(made)
        tell(first)
        frozen = running[0].pid
        wait("it froze", lambda: Path(f"/proc/{frozen}/stat").read_text().split()[2] == "T")
        assert rewards() == []
        # As a broker does when the session of a member has ended.
        remove_dead_members(kafka.bootstrap, f"{kafka.prefix}streams", lambda _: True)
        running.append(start(logs[1], "-m", "streams", "--worker", "2"))
        wait("the other's reward", lambda: rewards() == [1.0])
        tell(newer)
        wait("the newer reward", lambda: rewards() == [1.0, -1.0])
        os.kill(frozen, signal.SIGCONT)
        again = "partitions assigned"
        wait("it is a member again", lambda: logs[0].read_text().count(again) == 2)
        assert rewards()[-1] == -1.0
        assert [sample.reward for sample in events(kafka, SAMPLES, Sample)][-1] == -1.0
    finally:
        for process in running:
            process.kill()
            process.wait(10)
