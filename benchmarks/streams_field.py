"""The contestants of the streams benchmark, each a process of its own on a broker of its own.

Ours runs as in production, all parts on. Faust and aiokafka run from this environment, Quix Streams
and bytewax from one of their own, see `INSTALL`: they want other versions of what we pin.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
from kafka import KafkaConsumer, TopicPartition
from msgspec import Struct

from console.local_broker import LocalBroker
from contracts import settings as s
from contracts.broker import create_topics
from contracts.topics import REWARDS

ROOT = Path(__file__).resolve().parent.parent
QUIX, BYTEWAX = "3.28.1", "0.21.1"
INSTALL = f"""python3.11 -m venv PEERS
PEERS/bin/pip install quixstreams=={QUIX} bytewax=={BYTEWAX} 'feast[duckdb,redis]==0.67.0' \\
    kafka-python==3.0.12 msgspec~=0.22 opentelemetry-sdk~=1.45.0 pyyaml~=6.0 \\
    phonenumbers~=9.0 pyahocorasick~=2.3 python-stdnum~=2.2"""
STOP_SECONDS = 15.0
POLL_SECONDS = 0.02


class Contestant(Struct, frozen=True):
    """What to run; ``rewards`` is how many records one interaction leaves in the topic rewards.

    ``window_seconds``: how long a decision waits for its reward; else the rating closes it.
    """

    name: str
    words: tuple[str, ...]
    job: str = "whole"
    rewards: int = 2
    peer: str = ""
    window_seconds: float | None = None

    def python(self, peers: Path | None) -> str | None:
        """Return the interpreter to run it with, None when its package is not installed."""
        if not self.peer:
            return sys.executable
        if peers is None or not any(peers.glob(f"lib/python*/site-packages/{self.peer}")):
            return None
        return str(peers / "bin" / "python")


_PEER, _OURS = ("-m", "benchmarks.streams_peers"), ("-m", "benchmarks.streams_plumbing")
_PEERS = (
    ("raw aiokafka", "aiokafka", ""),
    ("Faust agent per event", "faust", ""),
    (f"Quix Streams {QUIX}", "quix", "quixstreams"),
    (f"bytewax {BYTEWAX}", "bytewax", "bytewax"),
)
CONTESTANTS = (
    Contestant("whole: Headrace", ("-m", "streams")),
    Contestant("whole: Headrace, windows of 1 s", ("-m", "streams"), window_seconds=1.0),
    *(
        Contestant(f"whole: {name}", (*_PEER, kind, "whole"), peer=peer)
        for name, kind, peer in _PEERS
    ),
    Contestant("short: Headrace", (*_OURS, "short"), "short", 1),
    *(
        Contestant(f"short: {name}", (*_PEER, kind, "short"), "short", 1, peer)
        for name, kind, peer in _PEERS
    ),
    Contestant("plumbing: Headrace", (*_OURS, "copy"), "plumbing"),
    Contestant("plumbing: raw aiokafka", (*_PEER, "aiokafka", "copy"), "plumbing"),
)


class Running:
    """A contestant that runs: its CPU, its memory, and how far it has come."""

    def __init__(self, contestant: Contestant, kafka: s.Kafka, process: subprocess.Popen[bytes]):
        self.contestant, self.kafka = contestant, kafka
        self._process, self._of = process, psutil.Process(process.pid)
        self._consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=None)
        name = REWARDS.full_name(kafka.prefix)
        self._places = [TopicPartition(name, number) for number in range(kafka.partitions)]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the process so far, all threads."""
        times = self._of.cpu_times()
        return times.user + times.system

    def resident_mb(self) -> float:
        """Return the resident memory now."""
        return float(self._of.memory_info().rss) / 1e6

    def pause(self) -> None:
        """Stop the process until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process go on."""
        self._process.send_signal(signal.SIGCONT)

    def await_rewards(self, interactions: int, seconds: float) -> float:
        """Wait until so many interactions are rewarded in all; return when that was.

        RuntimeError when the process ends, TimeoutError when the rewards do not come.
        """
        wanted, deadline = interactions * self.contestant.rewards, time.monotonic() + seconds
        while (found := sum(self._consumer.end_offsets(self._places).values())) < wanted:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.contestant.name} ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.contestant.name}: {found} of {wanted} records within {seconds} s"
                )
            time.sleep(POLL_SECONDS)
        return time.monotonic()

    def close(self) -> None:
        """Close the connection to the broker."""
        self._consumer.close()


def settings_in(
    folder: Path, kafka: s.Kafka, features: s.Features | None = None, **streams: object
) -> s.Settings:
    """Return the settings of every contestant; ratings made here have no token."""
    quarantine = s.Quarantine(proof="optional")
    section = msgspec.convert({"quarantine": quarantine, **streams}, s.Streams)
    features = features or s.Features()
    return s.Settings(state_dir=folder / "state", kafka=kafka, streams=section, features=features)


@contextmanager
def running(
    contestant: Contestant,
    python: str,
    folder: Path,
    features: s.Features | None = None,
    **streams: object,
) -> Iterator[Running]:
    """Run a contestant on a new broker; the end of its log is in the error that ends the block."""
    folder.mkdir(parents=True)
    log = folder / "log"
    with LocalBroker(folder / "broker") as broker:
        settings = settings_in(folder, broker.kafka, features, **streams)
        create_topics(settings.kafka)
        environment = {**os.environ, **s.to_environment(settings), "PYTHONPATH": str(ROOT)}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [python, *contestant.words],
                stdout=file,
                stderr=file,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        found = Running(contestant, settings.kafka, process)
        try:
            yield found
        except (RuntimeError, TimeoutError) as error:
            error.add_note(log.read_text(errors="replace")[-3000:])
            raise
        finally:
            found.close()
            process.kill()  # its broker goes too: there is nothing to leave in order
            process.wait(STOP_SECONDS)
