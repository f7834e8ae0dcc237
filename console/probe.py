"""Asks servers that write no heartbeat (broker, vLLM) how they fare, and writes one for them."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from contracts.clock import Clock
from contracts.errors import UnavailableError
from contracts.heartbeat import Heartbeat, write_heartbeat
from contracts.settings import Kafka
from contracts.topics import TOPICS

if TYPE_CHECKING:
    from kafka import KafkaAdminClient

PROBE_SECONDS = 2.0
ANSWER_SECONDS = 2.0
LONGEST_ANSWER_BYTES = 1 << 20
WAITING = "vllm:num_requests_waiting"
_WAITING = re.compile(rf"^{WAITING}(?:\{{[^}}]*\}})? ([0-9.e+]+)", re.MULTILINE)


def _nothing() -> None:
    return None


class Answer(Struct, frozen=True):
    """What a server said: the work that waits for it, or None and a note that says why."""

    lag: int | None
    note: str = ""


class Server(Struct, frozen=True, kw_only=True):
    """A server and how to ask it; ``ask`` raises UnavailableError when no answer comes in time."""

    name: str
    ask: Callable[[], Answer]
    close: Callable[[], None] = _nothing


class Probe:
    """Asks one server from a thread of its own, so that nobody waits for one that hangs.

    ``pid`` gives the process that serves now, 0 for one that others started, None while there is
    nothing to ask. The heartbeat's time is that of the last answer.
    """

    def __init__(
        self, state_dir: Path, server: Server, pid: Callable[[], int | None], clock: Clock
    ) -> None:
        self._state_dir = state_dir
        self._server = server
        self._pid = pid
        self._clock = clock
        self._last: Heartbeat | None = None
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"probe-{server.name}", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; a question under way ends by its own deadline."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            pid = self._pid()
            if pid is not None:
                self._beat(pid)
            self._stop.wait(PROBE_SECONDS)
        self._server.close()

    def _beat(self, pid: int) -> None:
        now = self._clock.now()
        try:
            answer = self._server.ask()
        except UnavailableError as error:
            if self._last is None or self._last.pid != pid:
                return
            self._last = replace(self._last, ready=False, note=str(error))
        else:
            self._last = Heartbeat(
                process=self._server.name,
                pid=pid,
                time=now,
                ready=True,
                lag=answer.lag,
                note=answer.note,
            )
        with suppress(OSError):  # a disk that is full shows as a growing age
            write_heartbeat(self._state_dir, self._last)


def engine_server(url: str, key: str = "") -> Server:
    """Return an engine; its lag is the number of requests that wait in it, as vLLM counts them."""
    return Server(name="engine", ask=lambda: _requests_waiting(f"{url}/metrics", key))


def _requests_waiting(url: str, key: str) -> Answer:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - address from the settings
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - address from the settings
            text = answer.read(LONGEST_ANSWER_BYTES).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return Answer(None, f"lag unknown: GET {url} answers {error.code}")
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise UnavailableError(f"GET {url}: {getattr(error, 'reason', error)}") from error
    found = _WAITING.findall(text)
    if not found:
        return Answer(None, f"lag unknown: {url} has no {WAITING}")
    return Answer(int(sum(float(value) for value in found)))


def broker_server(kafka: Kafka) -> Server:
    """Return a broker; its lag is the number of our partitions with a replica that is behind."""
    asked = _Metadata(kafka)
    return Server(name="broker", ask=asked.replicas_behind, close=asked.close)


class _Metadata:
    """One client for all questions: a client that finds no broker leaves a thread behind."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._names = [topic.full_name(kafka.prefix) for topic in TOPICS]
        self._admin: KafkaAdminClient | None = None

    def replicas_behind(self) -> Answer:
        """Count partitions whose in-sync replicas are fewer than their replicas."""
        from kafka.errors import KafkaError

        try:
            topics = self._client().describe_topics(self._names)
        except KafkaError as error:
            raise UnavailableError(f"metadata from {self._kafka.bootstrap}: {error}") from error
        missing = [topic["name"] for topic in topics if not topic["partitions"]]
        partitions = [each for topic in topics for each in topic["partitions"]]
        behind = sum(len(each["isr_nodes"]) < len(each["replica_nodes"]) for each in partitions)
        return Answer(behind, f"missing: {', '.join(missing)}" if missing else "")

    def close(self) -> None:
        """Close the client if there is one."""
        if self._admin is not None:
            self._admin.close()

    def _client(self) -> KafkaAdminClient:
        from kafka import KafkaAdminClient

        if self._admin is None:
            milliseconds = int(ANSWER_SECONDS * 1000)
            self._admin = KafkaAdminClient(
                bootstrap_servers=self._kafka.bootstrap,
                client_id="headrace-probe",
                request_timeout_ms=milliseconds,
                bootstrap_timeout_ms=milliseconds,
                reconnect_backoff_max_ms=1000,
            )
        return self._admin
