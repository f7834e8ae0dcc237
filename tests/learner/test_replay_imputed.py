"""A replay imputes again what the first run imputed, by the model that it had then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from kafka import TopicPartition
from msgspec.structs import replace
from safetensors.torch import load_file

from contracts.codec import Record, encode
from contracts.errors import SettingsError, UnavailableError
from contracts.events import Release
from contracts.settings import Constraint, Kafka, Settings
from contracts.topics import RELEASES, SAMPLES
from learner.adapters import ADAPTER_WEIGHTS
from learner.directory import versions_directory
from learner.intake import READ_PER_PLACE
from learner.replay_report import ReplayReport
from learner.version_line import line_of
from tests.broker_contract.clients import admin_client
from tests.learner.kill_plan import MakeSample
from tests.learner.small_reward_model import small_reward_model
from tests.topic_log import events

Learn = Callable[[Settings, Sequence[Record]], list[str]]
Replay = Callable[..., ReplayReport]


@pytest.fixture
def settings(settings: Settings, kafka: Kafka) -> Settings:
    return replace(settings, kafka=kafka, learner=replace(settings.learner, keep_states=8))


@pytest.fixture
def pieces(make_sample: MakeSample) -> list[Record]:
    return [encode(SAMPLES, make_sample(n), source="test") for n in range(110)]


def test_what_a_reward_model_imputed_is_imputed_again(
    settings: Settings,
    learn: Learn,
    replay: Replay,
    pieces: list[Record],
    make_sample: MakeSample,
    tmp_path: Path,
) -> None:
    """The model is signed by the live learner's key, not by the one that a replay makes."""
    model = small_reward_model(settings, make_sample, tmp_path / "models")
    settings = replace(settings, learner=replace(settings.learner, reward_model=str(model)))
    silent = [
        make_sample(700 + n, status="censored", reward=0.0, correction=None) for n in range(12)
    ]
    quiet = [encode(SAMPLES, sample, source="test") for sample in silent]
    versions = learn(settings, [*quiet, *pieces])
    imputed = [one for link in line_of(settings, versions[-1]) for one in link.ledger()]
    assert any(one.outcome == "imputed" for one in imputed)
    again = replay(versions[-1], settings)
    assert again.same
    assert [version.version for version in again.versions] == versions


def test_what_was_corrected_to_the_safe_answer_is_again(
    settings: Settings,
    learn: Learn,
    replay: Replay,
    pieces: list[Record],
    make_sample: MakeSample,
) -> None:
    """Rated and silent, by the settings of each version."""
    price = Constraint(limit=0.2, multiplier=1.0, rate=2.0, safe_answer="w1 w2")
    first = replace(settings, learner=replace(settings.learner, constraint=price))
    said: dict[str, object] = {"violation": True, "correction": None}
    broken = [make_sample(700 + n, **said) for n in range(4)]
    broken += [make_sample(800 + n, **said, status="censored", reward=0.0) for n in range(12)]
    there = [encode(SAMPLES, sample, source="test") for sample in broken]
    learn(first, [*there, *pieces[:48]])
    other = replace(price, safe_answer="w3")
    last = replace(settings, learner=replace(settings.learner, constraint=other))
    versions = learn(last, pieces[48:])
    lines = [one for link in line_of(last, versions[-1]) for one in link.ledger()]
    told = Counter(one.outcome for one in lines if one.correction == "safe-answer")
    assert told["used"] > 0
    assert told["priced"] > 0
    again = replay(versions[-1], last)
    assert again.same, again.why
    assert [version.version for version in again.versions] == versions


def test_a_long_silence_is_accounted_for_without_a_step_and_replays_to_the_same(
    settings: Settings,
    learn: Learn,
    replay: Replay,
    pieces: list[Record],
    make_sample: MakeSample,
) -> None:
    """As many are read as one batch may hold, three times over: silent ones alone, from which no
    version can come; one rated sample with silent ones around it; silent ones alone again."""
    room = READ_PER_PLACE * settings.learner.batch_samples
    silent = [
        encode(
            SAMPLES,
            make_sample(2_000 + n, status="censored", correction=None, violation=n % 2 == 0),
            source="test",
        )
        for n in range(3 * room - 1)
    ]
    settings = replace(settings, learner=replace(settings.learner, publish_every=1))
    log = [*silent[: room + 5], pieces[0], *silent[room + 5 :], *pieces[1:9]]
    versions = learn(settings, log)
    priced = settings.learner.batch_samples
    ledgers = [list(link.ledger()) for link in line_of(settings, versions[-1])]
    told = [line.offset for ledger in ledgers[:2] for line in ledger]
    assert told == list(range(room, 3 * room))  # of those before the first rating only counts
    assert [Counter(line.outcome for line in ledger) for ledger in ledgers[:2]] == [
        {"used": 1, "no-reward": room - 1 - priced, "priced": priced},
        {"no-reward": room},
    ]
    first, second, *_ = (
        load_file(versions_directory(settings) / version / ADAPTER_WEIGHTS) for version in versions
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    one, two = (e.metrics for e in events(settings.kafka, RELEASES, Release)[:2])
    assert two.keys() == {"samples", "cost_mean", "multiplier"}
    rule = settings.learner.constraint
    risen = rule.rate * (two["cost_mean"] - rule.aim)
    assert two["multiplier"] - one["multiplier"] == pytest.approx(risen)
    again = replay(versions[-1], settings)
    assert again.same
    assert [version.version for version in again.versions] == versions


def test_a_reward_model_that_another_took_the_place_of_is_found_beside_it(
    settings: Settings,
    learn: Learn,
    replay: Replay,
    pieces: list[Record],
    make_sample: MakeSample,
    tmp_path: Path,
) -> None:
    silent = [
        encode(SAMPLES, make_sample(700 + n, status="censored", correction=None), source="test")
        for n in range(12)
    ]
    named: list[str] = []
    versions: list[str] = []
    for seed, part in enumerate((pieces[:70], pieces[70:])):
        model = small_reward_model(settings, make_sample, tmp_path / "models", seed)
        learner = replace(settings.learner, reward_model=str(model))
        settings = replace(settings, learner=learner)
        named.append(model.name)
        versions = learn(settings, [*silent[seed::2], *part])
    line = line_of(settings, versions[-1])
    assert {link.manifest.config["reward_model"] for link in line} == set(named)
    again = replay(versions[-1], settings)
    first = [link.manifest.config["reward_model"] for link in line].index(named[1])
    assert first > 0
    assert [v.same for v in again.versions][:first] == [True] * first
    # The one that was being learned at the change may have batches of both.


def test_who_was_silent_before_anybody_rated_anything_is_looked_for_in_the_log(
    settings: Settings,
    learn: Learn,
    replay: Replay,
    pieces: list[Record],
    make_sample: MakeSample,
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their violations moved λ, and no ledger has them, nor what a judge rated among them."""
    monkeypatch.setattr("learner.intake.READ_PER_PLACE", 2)
    silent = [
        make_sample(
            5000 + n,
            status="censored",
            reward=0.0,
            correction=None,
            user_id="quiet" if n % 4 == 0 else f"other-{n}",
            violation=n % 4 == 0,
        )
        for n in range(48)
    ]
    silent[1::4] = [make_sample(5000 + n, user_id="user-4") for n in range(1, 48, 4)]  # a judge
    begin = [encode(SAMPLES, sample, source="test") for sample in silent]
    versions = learn(settings, [*begin, *pieces])
    line = line_of(settings, versions[-1])
    assert line[0].silent_until == 48
    assert min(outcome.offset for outcome in line[0].ledger()) == 48

    left_out = replay(versions[-1], settings, start="", without_user="quiet")
    assert (left_out.start, left_out.same) == ("base", False)
    assert left_out.removal is not None
    assert (left_out.removal.certain, left_out.removal.samples) == (True, 12)
    judged = replay(versions[-1], settings, start="", without_user="user-4")
    assert judged.removal is not None
    assert (judged.start, judged.removal.certain, judged.removal.samples) == ("base", True, 12)

    with admin_client(kafka) as admin:
        place = TopicPartition(SAMPLES.full_name(kafka.prefix), 0)
        admin.delete_records({place: line[0].silent_until})
    with pytest.raises(UnavailableError, match="retention has removed what is needed; give --from"):
        replay(versions[-1], settings)
    with pytest.raises(SettingsError, match="cannot be told; give --from"):
        replay(versions[-1], settings, start="", without_user="quiet")
