"""A tiny Llama, two adapters on it, and servers on them as processes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from console.local_broker import LocalBroker, free_port
from console.system_libraries import loader_environment
from contracts import settings as s
from contracts.broker import create_topics
from contracts.ids import NewId
from serving.http_engine import HttpEngine
from serving.vllm_command import vllm_command
from tests.serving.collector import Collector
from tests.serving.http_server import ADMIN_KEY, Server
from tests.serving.rollout_stage import Stage

VLLM_PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
StartGateway = Callable[..., Server]

SECRET = "a secret of the tests"
MAX_CONCURRENT = 50


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.serving.tiny_llama import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two LoRA adapters with different random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
        config = LoraConfig(
            r=8,
            lora_alpha=64,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        path = tmp_path_factory.mktemp(f"adapter{seed}")
        get_peft_model(model, config).save_pretrained(path)
        paths.append(path)
    return paths[0], paths[1]


@pytest.fixture(scope="session")
def tiny_engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The transformers engine on the tiny model."""
    folder = tmp_path_factory.mktemp("engine")
    port = free_port()
    settings = s.Settings(
        state_dir=folder,
        policy=s.Policy(model=str(tiny_model)),
        engine=s.Engine(kind="transformers", port=port, admin_key=ADMIN_KEY, faults=True),
    )
    server = Server(
        [sys.executable, "-m", "serving", "engine"],
        {**s.to_environment(settings), "OMP_NUM_THREADS": "1"},
        port,
        folder / "engine.log",
    )
    yield server.wait("/health")
    server.stop()


@pytest.fixture(
    scope="session",
    params=[
        "transformers",
        pytest.param(
            "vllm",
            marks=[
                pytest.mark.vllm,
                pytest.mark.skipif(not VLLM_PYTHON.exists(), reason=f"no {VLLM_PYTHON}"),
            ],
        ),
    ],
)
def any_engine(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Each of the engines on the tiny model, with the admin key of the tests."""
    if request.param == "transformers":
        yield request.getfixturevalue("tiny_engine")
        return
    port = free_port()
    settings = s.Settings(
        policy=s.Policy(model=str(tiny_model)),
        engine=s.Engine(
            dtype="float32", max_lora_rank=8, admin_key=ADMIN_KEY, faults=True, full_weights=True
        ),
    )
    argv, environment = vllm_command(settings, port, VLLM_PYTHON)
    environment |= loader_environment(VLLM_PYTHON.parent.parent)
    environment["CXX"] = "no-compiler"  # as on a small system
    server = Server(argv, environment, port, tmp_path_factory.mktemp("vllm") / "vllm.log")
    yield server.wait("/health")
    server.stop()


@pytest.fixture
async def admin(any_engine: Server) -> AsyncIterator[HttpEngine]:
    """A client with the keys of the rollout controller."""
    client = HttpEngine(any_engine.url, timeout_seconds=60.0, admin_key=ADMIN_KEY)
    yield client
    await client.close()


@pytest.fixture(scope="session")
def start_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGateway]:
    """Start gateways as processes; what still runs at the end is stopped."""
    started: list[Server] = []

    def start(
        kafka: s.Kafka,
        engine_url: str,
        state_dir: Path | None = None,
        otlp_endpoint: str = "",
        **values: Any,
    ) -> Server:
        folder = state_dir or tmp_path_factory.mktemp("gateway")
        folder.mkdir(exist_ok=True)
        port = free_port()
        defaults = {"port": port, "feedback_secret": SECRET, "temperature": 0.0, "max_tokens": 200}
        settings = s.Settings(
            state_dir=folder,
            kafka=kafka,
            engine=s.Engine(kind="transformers", url=engine_url, timeout_seconds=20.0),
            gateway=msgspec.convert({**defaults, **values}, s.Gateway),
            tracing=s.Tracing(otlp_endpoint=otlp_endpoint),
        )
        server = Server(
            [sys.executable, "-m", "serving", "gateway"],
            s.to_environment(settings),
            port,
            folder / "gateway.log",
        )
        started.append(server)
        return server.wait("/healthz")

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.die()


@pytest.fixture(scope="session")
def gateway_topics(broker: LocalBroker) -> s.Kafka:
    settings = s.Kafka(bootstrap=broker.kafka.bootstrap, prefix="gateway-")
    create_topics(settings)
    return settings


@pytest.fixture(scope="session")
def gateway(gateway_topics: s.Kafka, tiny_engine: Server, start_gateway: StartGateway) -> Server:
    """One gateway for all tests that only send it requests."""
    return start_gateway(
        gateway_topics, tiny_engine.url, max_body_bytes=20_000, max_concurrent=MAX_CONCURRENT
    )


@pytest.fixture
def stage(kafka: s.Kafka, tmp_path: Path, new_id: NewId) -> Stage:
    return Stage(kafka, tmp_path, new_id)
