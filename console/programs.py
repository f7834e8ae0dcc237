"""The programs of the local stack: each one's command, needs and health check.

Containers run the same commands; see ``deploy/``.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from console.child import Program
from console.environments import THIS_MACHINE
from console.local_broker import broker_command, remove_dead_members
from console.probe import Server, broker_server, engine_server
from console.system_libraries import loader_environment
from contracts.clock import SystemClock
from contracts.errors import DeadlineError, UnavailableError
from contracts.heartbeat import FRESH_SECONDS, read_heartbeat
from contracts.settings import Kafka, Settings

VLLM_PYTHON = THIS_MACHINE.vllm_python
ENGINE_SECONDS = 300.0
"""vLLM takes about a minute on two quiet cores, and several under load."""


def heartbeat_missing(state_dir: Path, process: str) -> Callable[[int], str]:
    """Return the check of one of our processes: a fresh heartbeat of that pid that says ready."""
    clock = SystemClock()

    def missing(pid: int) -> str:
        state = read_heartbeat(state_dir, process)
        if state is None or state.pid != pid:
            return "no heartbeat yet"
        if (age := state.age_seconds(clock.now())) > FRESH_SECONDS:
            return f"heartbeat is {age:.0f} s old"
        return "" if state.ready else state.note or "not ready yet"

    return missing


def http_missing(url: str) -> str:
    """Return "" when a GET answers with 200, else what came instead."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:  # noqa: S310 - address from the settings
            return "" if answer.status == 200 else f"GET {url} answers {answer.status}"
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error)).strip() or type(error).__name__
        return f"GET {url}: {reason}"


def broker_missing(kafka: Kafka) -> str:
    """Return "" when the broker answers a metadata request, else what it did instead."""
    from contracts.broker import wait_for_broker

    try:
        wait_for_broker(kafka, 0.0)
    except DeadlineError:
        return f"metadata from {kafka.bootstrap}"
    return ""


@contextmanager
def broker_answers(kafka: Kafka) -> Iterator[None]:
    """Turn the Kafka client's errors into UnavailableError."""
    from kafka.errors import KafkaError

    try:
        yield
    except KafkaError as error:
        raise UnavailableError(f"broker {kafka.bootstrap} refused or is away: {error}") from error


def make_topics(kafka: Kafka) -> None:
    """Create the topics that are missing; UnavailableError when the broker does not."""
    from contracts.broker import create_topics

    with broker_answers(kafka):
        create_topics(kafka)


def broker_program(settings: Settings) -> Program:
    """Return the development broker on the port of ``settings.kafka.bootstrap``."""
    port = int(settings.kafka.bootstrap.rsplit(":", 1)[1])
    data_dir = settings.state_dir / "broker"
    return Program(
        name="broker",
        command=tuple(broker_command(port, data_dir)),
        missing=lambda _pid: broker_missing(settings.kafka),
        port=port,
        start_seconds=30.0,
        before_start=lambda: data_dir.mkdir(parents=True, exist_ok=True),
        after_ready=lambda: make_topics(settings.kafka),
        server=broker_server(settings.kafka),
    )


def engine_program(settings: Settings, environment: dict[str, str]) -> Program:
    """Return the inference engine on ``settings.engine.port``; vLLM writes no heartbeat."""
    health = f"{settings.engine.url}/health"
    command: tuple[str, ...]
    server: Server | None = None
    if settings.engine.kind == "vllm":
        command, environment = vllm_arguments(settings)
        server = engine_server(settings.engine.url, settings.engine.key)
    else:
        command = (sys.executable, "-m", "serving", "engine")
    return Program(
        name="engine",
        command=command,
        environment=environment,
        missing=lambda _pid: http_missing(health),
        port=settings.engine.port,
        start_seconds=ENGINE_SECONDS,
        stop_seconds=30.0,
        server=server,
    )


def vllm_arguments(settings: Settings) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return vLLM's command and environment, with its spans sent where ours go."""
    from serving.vllm_command import vllm_command

    command, environment = vllm_command(settings, settings.engine.port, VLLM_PYTHON)
    environment |= loader_environment(VLLM_PYTHON.parent.parent)
    if settings.tracing.otlp_endpoint:
        endpoint = settings.tracing.otlp_endpoint.rstrip("/")
        command = [*command, "--otlp-traces-endpoint", f"{endpoint}/v1/traces"]
        environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
        environment["OTEL_SERVICE_NAME"] = "vllm"
    return tuple(command), environment


def streams_program(
    settings: Settings, environment: dict[str, str], number: int, needs: tuple[str, ...]
) -> Program:
    """Return one Faust worker. Before each start the members it left behind are removed: the
    development broker never evicts them, and the group would stand still."""
    client_id = f"headrace-streams-{number}"

    def remove_left_behind() -> None:
        if words := broker_missing(settings.kafka):
            raise UnavailableError(f"the broker is away ({words})")
        with broker_answers(settings.kafka):
            remove_dead_members(
                settings.kafka.bootstrap,
                f"{settings.kafka.prefix}streams",
                lambda found: found == client_id or found.startswith(f"{client_id}-"),
            )

    return Program(
        name=f"streams-{number}",
        command=(sys.executable, "-m", "streams", "--worker", str(number)),
        environment=environment,
        missing=heartbeat_missing(settings.state_dir, f"streams-{number}"),
        needs=needs,
        before_start=remove_left_behind,
    )


def own_program(
    settings: Settings,
    environment: dict[str, str],
    name: str,
    arguments: tuple[str, ...],
    needs: tuple[str, ...],
    port: int | None = None,
) -> Program:
    """Return one of our other processes, which says by its heartbeat that it is ready."""
    return Program(
        name=name,
        command=(sys.executable, "-m", *arguments),
        environment=environment,
        missing=heartbeat_missing(settings.state_dir, name),
        needs=needs,
        port=port,
    )
