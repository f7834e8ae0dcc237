"""A tiny Llama that was taught a few answers, two adapters, and servers on them as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import msgspec
import pytest

from console.local_broker import LocalBroker, free_port
from contracts import settings as s
from contracts.broker import create_topics

SECRET = "a secret of the tests"
START_SECONDS = 300.0  # vLLM on a busy machine takes minutes
STOP_SECONDS = 30.0
MAX_CONCURRENT = 50
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "escalate",
            "description": "Hand over.",
            "parameters": {"type": "object", "properties": {"to": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>{"name": "escalate", "arguments": {"to": "human"}}</tool_call>'
LESSONS = {
    "hello": "Grüße from a small model.",
    "help me": CALL,
    "both": "One moment. " + CALL,
    "count": " ".join(str(number) for number in range(1, 60)),
}
TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }} "
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{%- for call in message.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Server:
    """A process of ours that answers HTTP, started by a test and ended with it."""

    def __init__(self, argv: list[str], environment: dict[str, str], port: int, log: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                argv,
                stdout=file,
                stderr=file,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def wait(self, path: str) -> Server:
        """Wait until a GET of ``path`` gives 200."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get(path)
            except (HTTPException, OSError):
                time.sleep(0.05)
            else:
                return self
        self.kill()
        raise AssertionError(f"{self.url}{path} never answered:\n{self.log()[-4000:]}")

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def get(self, path: str) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise HTTPException(f"{path}: {response.status} {content!r}")
            return content
        finally:
            connection.close()

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/healthz"))
        return found

    def stop(self) -> int:
        """End the process with SIGTERM; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """End the process with SIGKILL."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with a chat template, and 80 thousand taught weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("tiny-model")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator([CALL] * 3 + list(LESSONS), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=384,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    )
    rows = [_lesson(tokenizer, question, answer) for question, answer in LESSONS.items()]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for place, (prompt, answer) in enumerate(rows):
        whole = len(prompt) + len(answer)
        ids[place, :whole] = torch.tensor(prompt + answer)
        labels[place, len(prompt) : whole] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _lesson(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        tools=TOOLS if "<tool_call>" in answer else None,
        add_generation_prompt=True,
        tokenize=False,
    )
    return (
        tokenizer(prompt, add_special_tokens=False)["input_ids"],
        tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"],
    )


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
        engine=s.Engine(kind="transformers", port=port),
    )
    server = Server(
        [sys.executable, "-m", "serving", "engine"],
        {**s.to_environment(settings), "OMP_NUM_THREADS": "1"},
        port,
        folder / "engine.log",
    )
    yield server.wait("/health")
    server.stop()


StartGateway = Callable[..., Server]


@pytest.fixture(scope="session")
def start_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGateway]:
    """Start gateways as processes; what still runs at the end is stopped."""
    started: list[Server] = []

    def start(
        kafka: s.Kafka, engine_url: str, state_dir: Path | None = None, **values: Any
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


def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Poll until the condition is true and return its value; fail naming the wait."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    return until
