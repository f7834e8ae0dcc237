"""Real parts for tests: one development broker per run, a fresh topic prefix per test."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from console.local_broker import LocalBroker
from contracts.broker import create_topics
from contracts.clock import ManualClock, SystemClock
from contracts.ids import NewId, uuid7_ids
from contracts.settings import Kafka


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def kafka(broker: LocalBroker, new_id: NewId) -> Kafka:
    """The settings of a broker with all topics made, under a prefix of this test's own."""
    settings = msgspec.structs.replace(broker.kafka, prefix=f"t-{new_id()}-")
    create_topics(settings)
    return settings


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def new_id() -> NewId:
    """Ids that differ in every run: brokers and stores outlive a test."""
    return uuid7_ids(SystemClock())


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base policy of the support desk in Hugging Face format, trained just enough to speak."""
    from itertools import islice

    from learner.warm_start import Demonstration, Recipe, make_policy
    from simulator.desk import Desk

    raw = list(islice(Desk().demonstrations(0), 600))
    return make_policy(
        msgspec.convert(raw, list[Demonstration]),
        tmp_path_factory.mktemp("policy") / "tiny",
        seed=0,
        steps=120,
        recipe=Recipe(hidden=64, layers=1, intermediate=128, batch=32, threads=1),
        progress=False,
    )
