"""The gateways of the gateway benchmark, each a process in front of one mock upstream.

Ours runs as in production, all parts on: a canary under way, a feature store with every user in
it, the guard, and decision, audit record and span of each request through outbox and broker. Peers
run from a virtual environment of their own, see `INSTALL`.
"""

from __future__ import annotations

import secrets
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from benchmarks.gateway_load import USERS, Target
from benchmarks.server_process import Command, server_process, wait_until
from console.local_broker import LocalBroker, free_port
from contracts import settings as s
from contracts.broker import create_topics, make_producer, send_and_wait
from contracts.clock import SystemClock
from contracts.codec import encode
from contracts.events import Candidate, Rollout
from contracts.ids import uuid7_ids
from contracts.topics import ROLLOUTS

LITELLM, ROUTER = "1.106.2", "0.1.17"
INSTALL = f"""python3.11 -m venv PEERS
PEERS/bin/pip install 'litellm[proxy]=={LITELLM}' vllm-router=={ROUTER}"""
START_SECONDS = 120.0
DRAIN_SECONDS = 60.0


class Contestant(Struct, frozen=True):
    """A running gateway. ``settled`` waits until what its requests caused is done."""

    name: str
    target: Target
    pid: int
    settled: Callable[[], None]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the process and its children, all threads."""
        process = psutil.Process(self.pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        return sum(time.user + time.system for time in times)


@contextmanager
def field(folder: Path, peers: Path | None) -> Iterator[tuple[Target, list[Contestant], int]]:
    """Start mock, broker and all gateways; give (the mock, the gateways, the broker's pid)."""
    with ExitStack() as stack:
        mock, _ = stack.enter_context(_ours(folder, "mock", ["mock"]))
        broker = stack.enter_context(LocalBroker(folder / "broker"))
        proxied = ["proxy", "--upstream", mock]
        raw, pid = stack.enter_context(_ours(folder, "proxy", proxied))
        found = [Contestant("raw ASGI proxy", Target(raw), pid, lambda: None)]
        found.insert(0, stack.enter_context(_headrace(folder, broker, mock)))
        if peers and (peers / "bin" / "litellm").exists():
            found.append(stack.enter_context(_litellm(folder, peers, mock)))
        if peers and (peers / "bin" / "vllm-router").exists():
            found.append(stack.enter_context(_router(folder, peers, mock)))
        yield Target(mock), found, _broker_pid(broker)


def _broker_pid(broker: LocalBroker) -> int:
    listening = (c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
    return next(c.pid for c in listening if c.laddr and c.laddr.port == broker.port and c.pid)


@contextmanager
def _headrace(folder: Path, broker: LocalBroker, mock: str) -> Iterator[Contestant]:
    port = free_port()
    settings = s.Settings(
        state_dir=folder / "state",
        kafka=broker.kafka,
        engine=s.Engine(url=mock),
        gateway=s.Gateway(port=port, feedback_secret=secrets.token_hex(16)),
    )
    create_topics(settings.kafka)
    _publish_canary(settings.kafka)
    _fill_features(settings)
    command = [sys.executable, "-m", "serving", "gateway"]
    url = f"http://127.0.0.1:{port}"
    started = Command(command, s.to_environment(settings), folder / "headrace.log")
    with server_process(started, url + "/healthz") as pid:

        def settled() -> None:
            wait_until(lambda: _health(url)["undelivered"] == 0, "an empty outbox", DRAIN_SECONDS)

        wait_until(lambda: _health(url)["status"] == "ok", f"{url} ok", START_SECONDS)
        yield Contestant("Headrace, all on", Target(url), pid, settled)


def _health(url: str) -> dict[str, object]:
    address = f"{url}/healthz"
    with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - our own loopback address
        found: dict[str, object] = msgspec.json.decode(answer.read())
    return found


def _publish_canary(kafka: s.Kafka) -> None:
    state = Rollout(
        id="canary-of-the-benchmark",
        time=datetime.now(UTC),
        policy="assistant",
        epoch=1,
        phase="canary",
        stable=Candidate(version="stable"),
        candidate=Candidate(version="canary", sequence=1),
        rollout_id="rollout",
        salt="salt",
        weight=0.25,
    )
    producer = make_producer(kafka, "headrace-benchmark")
    send_and_wait(producer, kafka, encode(ROLLOUTS, state, source="headrace/benchmark"))
    producer.close()


def _fill_features(settings: s.Settings) -> None:
    """Give every user and both versions a row; sessions begin with their request."""
    from feature_store.views import POLICY_VERSION, USER, FeatureRow, View
    from feature_store.writer import FeatureWriter

    def row(view: View, key: str) -> FeatureRow:
        values = {name: kind(1) for name, kind in view.features.items()}
        return FeatureRow(view=view.name, key=key, values=values, event_time=datetime.now(UTC))

    users = [row(USER, f"user-{number}") for number in range(USERS)]
    versions = [row(POLICY_VERSION, version) for version in ("stable", "canary")]
    FeatureWriter(settings, SystemClock()).write([*users, *versions])


@contextmanager
def _litellm(folder: Path, peers: Path, mock: str) -> Iterator[Contestant]:
    port, key = free_port(), f"sk-{uuid7_ids(SystemClock())()}"
    model = {"model": "openai/assistant", "api_base": f"{mock}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    wanted = {
        "model_list": [{"model_name": "assistant", "litellm_params": model}],
        "general_settings": {"master_key": key},
    }
    config.write_bytes(msgspec.yaml.encode(wanted))
    command = [str(peers / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""}
    url = f"http://127.0.0.1:{port}"
    started = Command(command, environment, folder / "litellm.log")
    with server_process(started, url + "/health/liveliness") as pid:
        target = Target(url, {"Authorization": f"Bearer {key}"})
        yield Contestant(f"litellm[proxy] {LITELLM}", target, pid, lambda: None)


@contextmanager
def _router(folder: Path, peers: Path, mock: str) -> Iterator[Contestant]:
    port, metrics = free_port(), free_port()
    command = [str(peers / "bin" / "vllm-router"), "--worker-urls", mock, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(metrics), "--policy", "round_robin"]
    url = f"http://127.0.0.1:{port}"
    started = Command(command, {"PYTHONPATH": ""}, folder / "vllm-router.log")
    with server_process(started, url + "/health") as pid:
        yield Contestant(f"vllm-router {ROUTER}", Target(url), pid, lambda: None)


@contextmanager
def _ours(folder: Path, name: str, arguments: list[str]) -> Iterator[tuple[str, int]]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway_upstream", *arguments]
    url = f"http://127.0.0.1:{port}"
    started = Command([*command, "--port", str(port)], {}, folder / f"{name}.log")
    with server_process(started, url + "/health") as pid:
        yield url, pid
