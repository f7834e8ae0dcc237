"""The servers of the swap benchmark: an engine, and a gateway that follows what it is told."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.server_process import Command, server_process
from benchmarks.swap_versions import RANK, Marked
from console.environments import THIS_MACHINE
from console.local_broker import LocalBroker, free_port
from console.system_libraries import loader_environment
from contracts import settings as s
from contracts.broker import create_topics, make_producer, send_and_wait
from contracts.codec import encode
from contracts.events import Candidate, Rollout
from contracts.settings.guard import Guard, GuardLayers
from contracts.topics import ROLLOUTS
from serving.vllm_command import vllm_command

ADMIN_KEY = secrets.token_hex(16)
OBSERVED = GuardLayers(
    personal_data="observe",
    secret="observe",  # noqa: S106 - a mode, not a password
    canary_string="observe",
    disallowed_content="observe",
)
"""These answers are one endless word, which an acting guard would hold back to its end."""


@contextmanager
def engine(kind: str, model: Path, folder: Path) -> Iterator[str]:
    """Run an engine on a model; give its address."""
    port, python = free_port(), THIS_MACHINE.vllm_python
    settings = s.Settings(
        state_dir=folder,
        policy=s.Policy(model=str(model)),
        engine=s.Engine(
            kind="vllm" if kind == "vllm" else "transformers",
            port=port,
            admin_key=ADMIN_KEY,
            max_lora_rank=RANK,  # vLLM pads each adapter to it, and each token pays for that on CPU
        ),
    )
    if kind == "vllm":
        command, environment = vllm_command(settings, port, python)
        environment |= loader_environment(python.parent.parent)
    else:
        command = [sys.executable, "-m", "serving", "engine"]
        environment = s.to_environment(settings)
    url = f"http://127.0.0.1:{port}"
    with server_process(Command(command, environment, folder / "engine.log"), url + "/health"):
        yield url


@contextmanager
def gateway(engine_url: str, folder: Path) -> Iterator[tuple[str, Callable[[Marked], None]]]:
    """Run a gateway with a broker; give (its address, what makes a version the stable one)."""
    port, count = free_port(), iter(range(1, 1 << 30))
    with LocalBroker(folder / "broker") as broker:
        settings = s.Settings(
            state_dir=folder / "gateway",
            kafka=broker.kafka,
            engine=s.Engine(url=engine_url),
            gateway=s.Gateway(port=port, feedback_secret=secrets.token_hex(16)),
            guard=Guard(layers=OBSERVED),
        )
        create_topics(settings.kafka)
        producer = make_producer(settings.kafka, "headrace-benchmark")

        def tell(version: Marked) -> None:
            epoch = next(count)
            state = Rollout(
                id=f"swap-{epoch}",
                time=datetime.now(UTC),
                policy=settings.policy.name,
                epoch=epoch,
                phase="promoted",
                stable=Candidate(version=version.name, sequence=epoch, location=str(version.path)),
            )
            record = encode(ROLLOUTS, state, source="headrace/benchmark")
            send_and_wait(producer, settings.kafka, record)

        command = [sys.executable, "-m", "serving", "gateway"]
        started = Command(command, s.to_environment(settings), folder / "gateway.log")
        url = f"http://127.0.0.1:{port}"
        try:
            with server_process(started, url + "/healthz"):
                yield url, tell
        finally:
            producer.close()
