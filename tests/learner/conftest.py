"""A two-layer random Llama with a small tokenizer, and samples its own policy wrote."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import msgspec
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from contracts.clock import ManualClock
from contracts.codec import Record, encode
from contracts.events import Assignment, Message, Sample
from contracts.ids import NewId, derived_id
from contracts.settings import Engine, Kafka, Learner, Policy, Settings
from contracts.topics import SAMPLES
from learner.loop import Learner as LearnerRun
from learner.outlet import Outlet
from learner.pulse import Pulse
from learner.rebuild import rebuild
from learner.replay_report import ReplayOrder, ReplayReport
from tests.learner.families import SPECIAL, WORDS, save_tokenizer
from tests.learner.reading import no_means, read_on
from tests.messages import says
from tests.signing_keys import new_key
from tests.topic_log import write

START = datetime(2026, 1, 1, tzinfo=UTC)

torch.set_num_threads(1)  # the models are tiny: on a busy machine threads only wait for each other

MakeSample = Callable[..., Sample]
SendSamples = Callable[[Kafka, int, int], None]
Learn = Callable[[Settings, Sequence[Record]], list[str]]
Replay = Callable[..., ReplayReport]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an untrained Llama (hidden 32, 2 layers) and its tokenizer."""
    return _untrained(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def lively_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with larger weights: it comes to tell answers apart by many nats, as real ones."""
    return _untrained(tmp_path_factory.mktemp("lively-model"), 0.2)


def _untrained(directory: Path, initializer_range: float = 0.02) -> Path:
    save_tokenizer(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=len(SPECIAL) + len(WORDS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            eos_token_id=3,
            pad_token_id=0,
            initializer_range=initializer_range,
        )
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture
def settings(tiny_model: Path, state_dir: Path) -> Settings:
    """Small batches on the tiny model."""
    keys = new_key(state_dir)
    return Settings(
        state_dir=state_dir,
        policy=Policy(name="assistant", model=str(tiny_model)),
        engine=Engine(max_model_len=64),
        learner=Learner(
            batch_samples=8,
            publish_every=2,
            lora_rank=8,
            lora_alpha=16.0,
            learning_rate=2e-3,
            replay_capacity=32,
            signing_key_file=keys.learner.signing_key_file,
        ),
    )


@pytest.fixture
def few_tell_what_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the answers of one small batch say what is in service."""
    monkeypatch.setattr("learner.progress.SERVED_LEAST", 8)


@pytest.fixture
def make_sample() -> MakeSample:
    """Make the n-th sample of a fixed log; keyword arguments replace fields."""

    def make(number: int, **changes: object) -> Sample:
        draw = random.Random(number)
        prompt = tuple(draw.randrange(8, 48) for _ in range(draw.randint(2, 9)))
        response = (*(draw.randrange(8, 48) for _ in range(draw.randint(1, 5))), 3)
        moment = START + timedelta(seconds=number)
        sample = Sample(
            id=derived_id("sample", str(number)),
            time=moment + timedelta(seconds=8),
            decision_id=derived_id("decision", str(number)),
            reward_id=derived_id("reward", str(number)),
            session_id=f"session-{number % 5}",
            user_id=f"user-{number % 3}",
            assignment=Assignment(policy="assistant", policy_version="base"),
            messages=(Message(role="user", content="w1 w2"),),
            action="answer",
            prompt_token_ids=prompt,
            token_ids=response,
            logprobs=tuple(-3.8 - 0.1 * draw.random() for _ in response),
            temperature=1.0,
            reward=draw.choice((-1.0, -0.5, 1.0)),
            violation=False,
            correction=says("w3 w4") if number % 7 == 0 else None,
            decided_at=moment,
            feedback_time=moment + timedelta(seconds=5),
        )
        return msgspec.structs.replace(sample, **changes)

    return make


@pytest.fixture
def send_samples(make_sample: MakeSample) -> SendSamples:
    """Send samples ``first`` to ``last - 1`` to the broker, each with a trace of its own."""

    def put(kafka: Kafka, first: int, last: int) -> None:
        traces = {n: f"00-{n + 1:032x}-{n + 1:016x}-01" for n in range(first, last)}
        write(
            kafka,
            *(
                encode(SAMPLES, make_sample(n), source="test", trace={"traceparent": trace})
                for n, trace in traces.items()
            ),
        )

    return put


@pytest.fixture
def learn(clock: ManualClock, new_id: NewId) -> Learn:
    """Learn from records, after what was learned before, and return the versions so far."""

    def make(settings: Settings, pieces: Sequence[Record]) -> list[str]:
        write(settings.kafka, *pieces)
        outlet = Outlet(settings.kafka, clock, new_id, Event())
        run = LearnerRun(settings, clock, outlet, Pulse(settings, clock, "learner"), no_means)
        return list(read_on(run).progress.versions)

    return make


@pytest.fixture
def replay(clock: ManualClock, tmp_path: Path) -> Replay:
    """Replay up to a version, from the base unless another start is given."""

    def make(end: str, settings: Settings, start: str = "base", **more: str) -> ReplayReport:
        directory = str(tmp_path / f"replay-{len(list(tmp_path.glob('replay-*')))}")
        order = ReplayOrder(directory=directory, end=end, start=start, **more)
        return rebuild(settings, order, clock, no_means, lambda _step: None)

    return make
