"""Whatever a crash cuts off, a restart gives bit for bit what an undisturbed run gives."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import msgspec
import pytest
from safetensors.torch import load_file

from contracts.clock import ManualClock
from contracts.codec import Record
from contracts.errors import ManifestError, SettingsError
from contracts.events import Assignment, AuditRecord, DeadLetter, FeatureValue, Release, Sample
from contracts.ids import NewId
from contracts.manifest import read_manifest, verify
from contracts.settings import Kafka, Practice, Settings
from contracts.topics import AUDIT, DEAD_LETTERS, RELEASES, SAMPLES
from learner import checkpoint
from learner.adapters import load_policy
from learner.directory import CrashPoint, no_crash, versions_directory
from learner.experience import Experience, experience_of
from learner.loop import Learner
from learner.outlet import Outlet
from learner.progress import SEEN_LEAST, Progress, advance
from learner.pulse import Pulse
from learner.train_state import new_train_state
from learner.user_features import RewardMeans
from learner.version_state import states_directory
from tests.learner.kill_plan import Log
from tests.learner.reading import read_on
from tests.messages import calls
from tests.topic_log import events, publish, write

MakeSample = Callable[..., Sample]
SendSamples = Callable[[Kafka, int, int], None]
OpenLearner = Callable[..., Learner]

CRASH_POINTS = [
    "looked-up",
    "before-save",
    "inside",
    "renamed",
    "inside-version",
    "renamed-version",
    "inside-state",
    "renamed-state",
    "before-announce",
    "after-announce",
]


class Crash(Exception):  # noqa: N818 - it stands for the end of the process
    pass


def _reward_means(experiences: Sequence[Experience]) -> list[float | None]:
    return [0.25 if e.user_id == "user-1" else None for e in experiences]


def _changing_means(calls: int) -> RewardMeans:
    """Return a store that answers otherwise after so many calls."""
    left = [calls]

    def look_up(experiences: Sequence[Experience]) -> list[float | None]:
        left[0] -= 1
        return [0.5 if left[0] >= 0 else -0.75 for _ in experiences]

    return look_up


@pytest.fixture
def settings(settings: Settings, kafka: Kafka) -> Settings:
    return msgspec.structs.replace(settings, kafka=kafka)


@pytest.fixture
def open_learner(clock: ManualClock, new_id: NewId) -> OpenLearner:
    def make(
        settings: Settings,
        crash_point: CrashPoint = no_crash,
        means: RewardMeans = _reward_means,
    ) -> Learner:
        outlet = Outlet(settings.kafka, clock, new_id, Event())
        pulse = Pulse(settings, clock, "learner")
        return Learner(settings, clock, outlet, pulse, means, crash_point)

    return make


def _crash_at(name: str, occurrence: int) -> CrashPoint:
    left = [occurrence]

    def crash_point(reached: str) -> None:
        if reached == name:
            left[0] -= 1
            if left[0] == 0:
                raise Crash(name)

    return crash_point


def test_a_restart_after_any_crash_is_bit_equal_and_learns_each_sample_once(
    settings: Settings,
    kafka: Kafka,
    tmp_path: Path,
    make_sample: MakeSample,
    send_samples: SendSamples,
    open_learner: OpenLearner,
) -> None:
    send_samples(kafka, 0, 20)
    publish(
        kafka, SAMPLES, *(make_sample(n, user_id=f"user-{n % 2 * 4 + 4}") for n in range(100, 112))
    )
    send_samples(kafka, 20, 40)
    send_samples(kafka, 10, 14)  # the same ids again
    send_samples(kafka, 40, 44)
    whole = read_on(open_learner(settings))
    assert whole.progress.batches == 5
    assert (whole.intake.duplicates, whole.progress.judged) == (4, 12)
    wanted = (whole.root / "000000005" / checkpoint.TENSORS).read_bytes()

    for name in CRASH_POINTS:
        mine = msgspec.structs.replace(settings, state_dir=tmp_path / name)
        with pytest.raises(Crash):
            read_on(open_learner(mine, _crash_at(name, 2)))
        resumed = read_on(open_learner(mine))

        assert resumed.progress == whole.progress, name
        assert (resumed.root / "000000005" / checkpoint.TENSORS).read_bytes() == wanted, name
        assert _ledger_ids(resumed) == _ledger_ids(whole), name
        assert len(set(_ledger_ids(resumed))) == 44, name  # four released batches and the judges

    releases = events(kafka, RELEASES, Release)
    assert {release.version for release in releases} == set(whole.progress.versions)
    assert len({release.id for release in releases}) == 2  # the same two ids in eight runs


@pytest.mark.usefixtures("few_tell_what_serves")
def test_a_restart_is_bit_equal_where_the_anchor_moves_and_the_policy_practises(
    settings: Settings,
    kafka: Kafka,
    tmp_path: Path,
    make_sample: MakeSample,
    send_samples: SendSamples,
    open_learner: OpenLearner,
) -> None:
    prompts = tmp_path / "practice.jsonl"
    asked = [{"messages": [{"role": "user", "content": f"w{n}"}], "expect": {}} for n in range(6)]
    prompts.write_text("\n".join(map(json.dumps, asked)))
    learner = msgspec.structs.replace(
        settings.learner,
        anchor_refresh_releases=1,
        practice=Practice(prompts=str(prompts), max_tokens=8),
    )
    settings = msgspec.structs.replace(settings, learner=learner)
    send_samples(kafka, 0, 16)
    first = read_on(open_learner(settings)).progress.parent
    served = Assignment(policy="assistant", policy_version=first)
    publish(kafka, SAMPLES, *(make_sample(n, assignment=served) for n in range(16, 40)))
    again = msgspec.structs.replace(settings, state_dir=tmp_path / "whole")
    whole = read_on(open_learner(again))
    assert (whole.progress.batches, whole.progress.anchor) == (5, first)
    newest = whole.root / "000000005" / checkpoint.TENSORS
    assert any(name.startswith("anchor/") for name in load_file(newest))
    assert whole.progress.stats.practised == 16
    assert 0.0 < whole.progress.stats.practice_reward < 1.0
    manifest = read_manifest(versions_directory(again) / whole.progress.parent)[1]
    assert manifest.config["learner"]["practice"]["prompts"] == whole.progress.practice

    # The anchor moves with the third batch.
    for name, occurrence in (("before-save", 3), ("before-save", 4), ("renamed", 3)):
        mine = msgspec.structs.replace(settings, state_dir=tmp_path / f"{name}-{occurrence}")
        with pytest.raises(Crash):
            read_on(open_learner(mine, _crash_at(name, occurrence)))
        resumed = read_on(open_learner(mine))

        assert resumed.progress == whole.progress, (name, occurrence)
        tensors = resumed.root / "000000005" / checkpoint.TENSORS
        assert tensors.read_bytes() == newest.read_bytes(), (name, occurrence)


def test_a_restart_is_bit_equal_where_the_feature_store_answers_otherwise_by_then(
    settings: Settings,
    kafka: Kafka,
    tmp_path: Path,
    make_sample: MakeSample,
    open_learner: OpenLearner,
) -> None:
    learner = msgspec.structs.replace(settings.learner, publish_every=100)
    settings = msgspec.structs.replace(settings, learner=learner)
    write(kafka, *Log(random.Random(5), make_sample, logged_share=0.5).draw(64, []))
    whole = read_on(open_learner(settings, means=_changing_means(2)))
    newest = checkpoint.place(whole.root, whole.progress)
    assert whole.progress.batches >= 4
    assert {0.5, -0.75} < {line.user_reward_mean for line in whole.progress.ledger}

    for name in ("looked-up", "before-save", "inside"):
        mine = msgspec.structs.replace(settings, state_dir=tmp_path / name)
        with pytest.raises(Crash):
            read_on(open_learner(mine, _crash_at(name, 2), _changing_means(2)))
        resumed = read_on(open_learner(mine, means=_changing_means(0)))

        assert resumed.progress == whole.progress, name
        again = checkpoint.place(resumed.root, resumed.progress)
        for file in (checkpoint.STATE, checkpoint.TENSORS):
            assert (again / file).read_bytes() == (newest / file).read_bytes(), name


def _ledger_ids(learner: Learner) -> list[str]:
    root = learner.settings.state_dir / "versions" / learner.settings.policy.name
    found = []
    for version in learner.progress.versions:
        lines = (root / version / "ledger.jsonl").read_text().splitlines()
        found += [json.loads(line)["sample_id"] for line in lines]
    return found


def test_a_version_verifies_names_its_samples_and_parent_and_shows_a_changed_byte(
    settings: Settings,
    kafka: Kafka,
    tmp_path: Path,
    make_sample: MakeSample,
    send_samples: SendSamples,
    open_learner: OpenLearner,
) -> None:
    send_samples(kafka, 0, 32)
    learner = read_on(open_learner(settings))

    first, second = events(kafka, RELEASES, Release)
    manifest = verify(Path(second.location), second.version)

    assert (first.parent, second.parent) == ("base", first.version)
    assert (first.sequence, second.sequence) == (1, 2)
    assert [(r.first, r.next) for r in manifest.trained_on] == [(16, 32)]
    assert manifest.base == learner.train.policy.base
    assert (manifest.samples, manifest.users) == (16, 3)
    assert manifest.oldest_feedback_time == make_sample(16).feedback_time
    assert manifest.as_of < manifest.newest_feedback_time == second.newest_feedback_time
    assert str(tmp_path) not in (Path(second.location) / "manifest.json").read_text()
    lines = (Path(second.location) / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["offset"] for line in lines] == list(range(16, 32))
    assert {json.loads(line)["user_reward_mean"] for line in lines} == {0.25, None}

    weights = Path(second.location) / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ManifestError, match="adapter_model"):
        verify(Path(second.location), second.version)


def test_a_record_that_is_no_sample_is_put_aside_and_stops_nothing(
    settings: Settings,
    kafka: Kafka,
    send_samples: SendSamples,
    open_learner: OpenLearner,
) -> None:
    write(kafka, Record(SAMPLES, b"k", b"{not json", []))
    send_samples(kafka, 0, 8)
    learner = read_on(open_learner(settings))

    assert learner.progress.batches == 1
    (letter,) = events(kafka, DEAD_LETTERS, DeadLetter)
    assert letter.reason == "malformed"
    trail = events(kafka, AUDIT, AuditRecord)
    assert [one.action for one in trail] == ["learner.started", "dead-letter", "batch.learned"]
    assert trail[1].subject == f"{letter.topic}/0/0"
    assert (trail[1].reason, trail[1].detail) == ("malformed", {"id": letter.id})


@pytest.mark.parametrize(
    ("key", "headers"), [(b"k", [("note", b"x" * 400_000)]), (b"k" * 700_000, [])]
)
def test_a_record_with_a_large_key_or_header_is_put_aside_and_stops_nothing(
    settings: Settings,
    kafka: Kafka,
    send_samples: SendSamples,
    open_learner: OpenLearner,
    key: bytes,
    headers: list[tuple[str, bytes]],
) -> None:
    write(kafka, Record(SAMPLES, key, b"{" + b" " * 250_000, headers))
    send_samples(kafka, 0, 8)
    learner = read_on(open_learner(settings))

    assert learner.progress.batches == 1
    (letter,) = events(kafka, DEAD_LETTERS, DeadLetter)
    place = (letter.topic, letter.partition, letter.offset)
    assert place == (SAMPLES.full_name(kafka.prefix), 0, 0)


def test_odd_corrections_stop_nothing(
    settings: Settings,
    kafka: Kafka,
    make_sample: MakeSample,
    send_samples: SendSamples,
    open_learner: OpenLearner,
) -> None:
    for number, arguments in ((1, '{"a":"\\ud800"}'), (2, "[" * 100_000)):
        publish(kafka, SAMPLES, make_sample(number, correction=calls("search", arguments)))
    send_samples(kafka, 10, 16)
    learner = read_on(open_learner(settings))

    assert learner.progress.batches == 1
    assert (learner.progress.next_offset, learner.dead_letters) == (8, 0)


def test_a_sample_that_cannot_become_an_experience_is_put_aside_as_failed(
    settings: Settings,
    kafka: Kafka,
    send_samples: SendSamples,
    open_learner: OpenLearner,
    caplog: pytest.LogCaptureFixture,
) -> None:
    send_samples(kafka, 0, 9)  # the first has a correction
    learner = open_learner(settings)
    learner.train.policy.tokenizer.chat_template = "{{ raise_exception('no such turn') }}"
    send_samples(kafka, 9, 10)
    read_on(learner)

    assert learner.progress.batches == 1  # eight of ten; numbers 0 and 7 have corrections
    letters = events(kafka, DEAD_LETTERS, DeadLetter)
    found = sorted((letter.reason, letter.offset) for letter in letters)
    assert found == [("failed", 0), ("failed", 7)]
    assert "offset 7 failed: TemplateError" in caplog.text
    assert "no such turn" not in caplog.text  # an error may quote what people wrote


def test_as_many_sample_ids_are_remembered_as_a_restart_of_the_streams_may_repeat(
    settings: Settings, make_sample: MakeSample
) -> None:
    train = new_train_state(load_policy(settings), settings.learner)
    old = tuple(f"id-{number}" for number in range(50_000))
    fresh = [experience_of(make_sample(1))]
    before = Progress(policy="assistant", base=train.policy.base, seen=old)

    for limit, kept in ((200_000, 50_001), (30_000, 30_000), (10, SEEN_LEAST)):
        streams = msgspec.structs.replace(settings.streams, max_open_decisions=limit)
        mine = msgspec.structs.replace(settings, streams=streams)
        after = advance(train, before, fresh, mine)
        assert after.seen == (*old, fresh[0].sample_id)[-kept:]


def test_a_torn_checkpoint_is_passed_over_and_only_the_newest_are_kept(
    settings: Settings,
    kafka: Kafka,
    send_samples: SendSamples,
    open_learner: OpenLearner,
) -> None:
    send_samples(kafka, 0, 40)
    learner = read_on(open_learner(settings))
    names = sorted(path.name for path in learner.root.iterdir())
    assert names == ["000000003", "000000004", "000000005"]

    newest = learner.root / "000000005" / checkpoint.TENSORS
    newest.write_bytes(newest.read_bytes()[:-10])
    (learner.root / ".partial-1").mkdir()
    train = new_train_state(load_policy(settings), settings.learner)
    progress = checkpoint.restore(learner.root, train)

    assert progress is not None
    assert progress.batches == 4
    assert not (learner.root / ".partial-1").exists()
    saved = load_file(learner.root / "000000004" / checkpoint.TENSORS)
    for name, parameter in train.policy.adapters().items():
        assert parameter.equal(saved[f"adapter/{name}"])


def test_with_every_checkpoint_torn_the_newest_sound_state_is_gone_on_from(
    settings: Settings,
    kafka: Kafka,
    tmp_path: Path,
    send_samples: SendSamples,
    open_learner: OpenLearner,
) -> None:
    send_samples(kafka, 0, 56)
    whole = read_on(open_learner(settings))
    wanted = (whole.root / "000000007" / checkpoint.TENSORS).read_bytes()
    for path in whole.root.glob("*"):
        (path / checkpoint.TENSORS).write_bytes(b"")
    *_, before, newest = whole.progress.versions
    (states_directory(settings) / newest / checkpoint.TENSORS).write_bytes(b"")

    again = open_learner(settings)
    assert (again.progress.batches, before in again.progress.versions) == (4, False)
    assert read_on(again).progress == whole.progress
    assert (again.root / "000000007" / checkpoint.TENSORS).read_bytes() == wanted


def test_a_checkpoint_of_another_base_is_refused(settings: Settings, tmp_path: Path) -> None:
    train = new_train_state(load_policy(settings), settings.learner)
    progress = Progress(policy="assistant", base="sha256:another")
    checkpoint.save(tmp_path, train, progress, keep=1)

    with pytest.raises(SettingsError, match="another"):
        checkpoint.restore(tmp_path, train)


def test_a_newer_sample_takes_the_place_of_one_not_learned_yet_and_a_withdrawn_one_teaches_nothing(
    settings: Settings,
    kafka: Kafka,
    make_sample: MakeSample,
    open_learner: OpenLearner,
) -> None:
    batch = settings.learner.batch_samples
    first = [make_sample(number) for number in range(batch + 2)]
    again = make_sample(0, id="again", revision=1, reward=-0.75)
    taken_back = make_sample(1, id="taken-back", revision=1, withdrawn=True)
    publish(kafka, SAMPLES, *first[:2], again, taken_back, *first[2:])
    learner = read_on(open_learner(settings))
    assert learner.progress.batches == 1
    outcomes = {line.sample_id: line.outcome for line in learner.progress.ledger}
    assert outcomes[first[0].id] == outcomes[first[1].id] == "superseded"
    assert outcomes["taken-back"] == "withdrawn"
    assert outcomes["again"] == "used"
    learned = {e.decision_id: e.reward for e in learner.progress.replay.recent}
    assert learned[first[0].decision_id] == -0.75
    assert first[1].decision_id not in learned
    assert len(outcomes) == batch + 3  # the two superseded, the one withdrawn, and the batch

    later = make_sample(0, id="later", revision=2, withdrawn=True)
    publish(kafka, SAMPLES, later, *[make_sample(100 + number) for number in range(batch)])
    learner = read_on(open_learner(settings))
    assert learner.progress.batches == 2
    assert first[0].decision_id not in {e.decision_id for e in learner.progress.replay.recent}


def test_what_the_gateway_logged_of_a_user_is_used_and_only_the_rest_is_looked_up(
    settings: Settings,
    kafka: Kafka,
    make_sample: MakeSample,
    open_learner: OpenLearner,
) -> None:
    logged = {0: 0.75, 1: None}
    samples = [
        make_sample(n, features={"user.reward_mean": FeatureValue(value=logged[n])})
        if n in logged
        else make_sample(n)
        for n in range(settings.learner.batch_samples)
    ]
    publish(kafka, SAMPLES, *samples)
    learner = read_on(open_learner(settings))
    used = {line.sample_id: line.user_reward_mean for line in learner.progress.ledger}
    for number, sample in enumerate(samples):
        stored = 0.25 if sample.user_id == "user-1" else None
        assert used[sample.id] == logged.get(number, stored), number


def test_samples_of_another_policy_are_left_to_its_own_learner(
    settings: Settings,
    kafka: Kafka,
    make_sample: MakeSample,
    send_samples: SendSamples,
    open_learner: OpenLearner,
) -> None:
    foreign = Assignment(policy="another", policy_version="base")
    publish(kafka, SAMPLES, *(make_sample(n, assignment=foreign) for n in range(200, 210)))
    send_samples(kafka, 0, 12)
    learner = read_on(open_learner(settings))
    learner.show(0)
    assert learner.pulse.counts["others"] == 10
    taken = [
        one.experience.sample_id
        for one in (*learner.intake.pending.values(), *learner.intake.judged.values())
    ]
    learned = {outcome.sample_id for outcome in learner.progress.ledger}
    expected = {make_sample(n).id for n in range(12)}
    assert learned.union(taken) == expected
