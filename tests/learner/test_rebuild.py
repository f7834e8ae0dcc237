"""A replay makes the versions of a log again, bit for bit, or as if a user had never been there."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import pytest
from kafka import TopicPartition
from msgspec.structs import replace

from contracts.broker import create_topics, events_to_end
from contracts.clock import ManualClock
from contracts.codec import Record, decode, encode, to_json
from contracts.errors import CodecError, ManifestError, SettingsError, UnavailableError
from contracts.events import Assignment, AuditRecord, Release, Sample
from contracts.ids import NewId
from contracts.manifest import read_manifest
from contracts.settings import Constraint, Kafka, Practice, Settings
from contracts.topics import AUDIT, RELEASES, SAMPLES
from learner.checkpoint import STATE, TENSORS
from learner.experience import Experience
from learner.loop import Learner
from learner.outlet import Outlet
from learner.pulse import Pulse
from learner.rebuild import rebuild
from learner.replay_report import ReplayOrder, ReplayReport, Step
from learner.version_line import line_of
from tests.broker_contract.clients import admin_client
from tests.learner.kill_plan import Log, MakeSample
from tests.learner.reading import read_on
from tests.topic_log import events, write

OpenLearner = Callable[[Settings], Learner]
Replay = Callable[..., ReplayReport]

GONE = "user-3"
"""Trains, has samples in most batches, and is no judge."""


def _means(experiences: Sequence[Experience]) -> list[float | None]:
    return [0.25 if e.user_id in ("user-1", GONE) else None for e in experiences]


def _other_means(experiences: Sequence[Experience]) -> list[float | None]:
    """What the store says later: facts came in, and others were removed."""
    return [0.75 for _ in experiences]


@pytest.fixture
def settings(settings: Settings, kafka: Kafka) -> Settings:
    return replace(settings, kafka=kafka, learner=replace(settings.learner, keep_states=8))


@pytest.fixture
def pieces(rng: random.Random, make_sample: MakeSample) -> list[Record]:
    return Log(rng, make_sample, logged_share=0.5).draw(160, [])


@pytest.fixture
def open_learner(clock: ManualClock, new_id: NewId) -> OpenLearner:
    def make(settings: Settings) -> Learner:
        outlet = Outlet(settings.kafka, clock, new_id, Event())
        return Learner(settings, clock, outlet, Pulse(settings, clock, "learner"), _means)

    return make


@pytest.fixture
def replay(settings: Settings, clock: ManualClock, tmp_path: Path) -> Replay:
    """Replay up to a version, into a directory that is new each time."""
    told: list[Step] = []

    def make(end: str, mine: Settings = settings, **order: object) -> ReplayReport:
        directory = str(tmp_path / f"replay-{len(list(tmp_path.glob('replay-*')))}")
        whole = {"directory": directory, "end": end, **order}
        return rebuild(mine, ReplayOrder(**whole), clock, _other_means, told.append)  # type: ignore[arg-type] # the fields of the order

    return make


def _learn(open_learner: OpenLearner, settings: Settings, pieces: Sequence[Record]) -> list[str]:
    """Learn from records and return the versions that were released so far."""
    write(settings.kafka, *pieces)
    return list(read_on(open_learner(settings)).progress.versions)


def _files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _made(report: ReplayReport, policy: str = "assistant") -> dict[int, str]:
    """Return number to id of every version in a replay's directory."""
    root = Path(report.directory) / "versions" / policy
    found = {read_manifest(path)[1].sequence: path.name for path in root.iterdir()}
    return dict(sorted(found.items()))


def test_versions_are_made_again_from_the_base_or_a_kept_state_and_nothing_else_is_touched(
    settings: Settings, open_learner: OpenLearner, replay: Replay, pieces: list[Record]
) -> None:
    versions = _learn(open_learner, settings, pieces)
    before = _files(settings.state_dir)
    told = [
        len(events(settings.kafka, *topic)) for topic in ((RELEASES, Release), (AUDIT, AuditRecord))
    ]

    whole = replay(versions[-1], start="base")
    assert [version.version for version in whole.versions] == versions
    assert whole.same
    assert all(version.same_weights for version in whole.versions)
    assert (whole.looked_up, whole.why, whole.log_begins) == (0, (), 0)
    for version in versions:
        directory = Path(whole.directory) / "versions" / "assistant" / version
        live = settings.state_dir / "versions" / "assistant" / version
        again, first = _files(directory), _files(live)
        assert again.pop("manifest.sig") != first.pop("manifest.sig")  # nobody trusts its key
        assert again == first

    later = replay(versions[-1], start=versions[1])
    assert [version.version for version in later.versions] == versions[2:]
    assert later.same
    nearest = replay(versions[-1])
    assert (nearest.start, len(nearest.versions)) == (versions[-2], 1)
    assert nearest.same

    assert _files(settings.state_dir) == before
    assert told == [
        len(events(settings.kafka, *topic)) for topic in ((RELEASES, Release), (AUDIT, AuditRecord))
    ]


@pytest.mark.parametrize(("price", "tokens"), [(0.0, (9, 3)), (2.0, (99_999,))])
def test_silent_violations_that_taught_nothing_keep_the_means_that_the_store_had_then(
    settings: Settings,
    open_learner: OpenLearner,
    replay: Replay,
    pieces: list[Record],
    make_sample: MakeSample,
    price: float,
    tokens: tuple[int, ...],
) -> None:
    """They have no price, or cannot be scored; some of their users were known, and some not."""
    rule = Constraint(limit=0.9, multiplier=price, rate=0.1)
    mine = replace(settings, learner=replace(settings.learner, constraint=rule))
    said = {"status": "censored", "reward": 0.0, "correction": None, "violation": True}
    silent = [make_sample(700 + n, **said, token_ids=tokens, logprobs=()) for n in range(12)]
    quiet = [encode(SAMPLES, sample, source="test") for sample in silent]
    versions = _learn(open_learner, mine, [*quiet, *pieces])
    told = {line.decision_id: line for line in line_of(mine, versions[-1])[0].ledger()}
    lines = [told[sample.decision_id] for sample in silent]
    assert {line.outcome for line in lines} == {"no-reward"}
    assert {line.user_reward_mean for line in lines} == {0.25, None}
    report = replay(versions[-1], mine, start="base")
    assert (report.same, report.looked_up) == (True, 0)


def test_settings_that_changed_with_a_version_are_taken_from_it(
    settings: Settings, open_learner: OpenLearner, replay: Replay, pieces: list[Record]
) -> None:
    first = _learn(open_learner, settings, pieces[:60])
    faster = replace(
        settings,
        learner=replace(settings.learner, learning_rate=4e-3, batch_samples=6),
        policy=replace(settings.policy, judge_share=0.4),
        gate=replace(settings.gate, evaluation_samples=12),
    )
    at_a_version = read_on(open_learner(settings)).progress
    assert at_a_version.batches == at_a_version.released_batches
    versions = _learn(open_learner, faster, pieces[60:])
    assert versions[: len(first)] == first
    report = replay(versions[-1], start="base")
    assert report.same
    assert len(report.versions) == len(versions) > len(first)


def test_the_first_difference_is_told_with_its_reasons(
    settings: Settings,
    open_learner: OpenLearner,
    replay: Replay,
    pieces: list[Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = open_learner(settings)
    write(settings.kafka, *pieces[:20])
    assert read_on(learner).progress.batches == 1
    faster = replace(settings, learner=replace(settings.learner, learning_rate=4e-3))
    versions = _learn(open_learner, faster, pieces[20:])
    report = replay(versions[-1], start="base")
    assert not report.versions[0].same
    assert not report.versions[0].same_weights
    assert "adapter_model.safetensors" in report.versions[0].differences
    assert any("settings that changed between two versions" in why for why in report.why)

    monkeypatch.setattr("learner.publish.code_version", lambda: "another release")
    report = replay(versions[-1], start=versions[0])
    assert not report.same
    assert all(version.same_weights for version in report.versions)
    (first, second) = (version.differences for version in report.versions[:2])
    assert len(first) == 1
    assert first[0].startswith("code: headrace 0.1.0 ")
    assert {one.split(":")[0] for one in second} == {"code", "parent", "state", "evidence.json"}
    (why,) = report.why
    assert why.startswith("it was made by headrace 0.1.0 ")
    assert why.endswith(", this is another release")


def _without(pieces: Sequence[Record], user: str) -> list[Record]:
    """Return the log with another policy's samples where this user's were."""
    foreign = Assignment(policy="another", policy_version="base")
    return [
        encode(SAMPLES, replace(sample, assignment=foreign), source="test")
        if (sample := _sample(piece)) is not None and sample.user_id == user
        else piece
        for piece in pieces
    ]


def _sample(piece: Record) -> Sample | None:
    try:
        event = decode(SAMPLES, piece.value, piece.headers)
    except CodecError:
        return None
    return event if isinstance(event, Sample) else None


@pytest.mark.parametrize("user", [GONE, "user-4"])
def test_without_a_user_the_versions_are_those_of_a_log_that_never_had_them(
    settings: Settings,
    open_learner: OpenLearner,
    replay: Replay,
    pieces: list[Record],
    kafka: Kafka,
    tmp_path: Path,
    user: str,
) -> None:
    """The second user is a judge: the weights stay, the evidence does not."""
    versions = _learn(open_learner, settings, pieces)
    report = replay(versions[-1], without_user=user)

    never = replace(kafka, prefix=f"{kafka.prefix}never-")
    create_topics(never)
    other = replace(settings, kafka=never, state_dir=tmp_path / "never")
    end = line_of(settings, versions[-1])[-1].next
    wanted = _learn(open_learner, other, _without(pieces[:end], user))
    assert list(_made(report).values()) == wanted
    assert wanted[-1] != versions[-1]
    for name in wanted:
        mine = _files(Path(report.directory) / "versions" / "assistant" / name)
        theirs = _files(tmp_path / "never" / "versions" / "assistant" / name)
        del mine["manifest.sig"], theirs["manifest.sig"]
        assert mine == theirs

    removed = {
        event.id
        for record, event in events_to_end(kafka, (SAMPLES,), "test-reader")
        if isinstance(event, Sample)
        and record.offset < end
        and (event.user_id, event.assignment.policy) == (user, "assistant")
    }
    assert report.removal is not None
    assert report.removal.samples == len(removed) == sum(report.removal.outcomes.values())
    assert (report.removal.moved == 0.0) == (user == "user-4")


def test_records_that_are_really_gone_give_the_same_weights_and_ledgers_at_other_offsets(
    settings: Settings,
    open_learner: OpenLearner,
    replay: Replay,
    pieces: list[Record],
    kafka: Kafka,
    tmp_path: Path,
) -> None:
    versions = _learn(open_learner, settings, pieces)
    report = replay(versions[-1], without_user=GONE)
    never = replace(kafka, prefix=f"{kafka.prefix}never-")
    create_topics(never)
    other = replace(settings, kafka=never, state_dir=tmp_path / "never")
    end = line_of(settings, versions[-1])[-1].next
    left = [p for p in pieces[:end] if (s := _sample(p)) is None or s.user_id != GONE]
    wanted = _learn(open_learner, other, left)
    mine = replace(settings, state_dir=Path(report.directory))
    ours, theirs = line_of(mine, list(_made(report).values())[-1]), line_of(other, wanted[-1])
    assert len(ours) == len(theirs) > 0
    for one, another in zip(ours, theirs, strict=True):
        weights = "adapter_model.safetensors"
        assert one.manifest.files[weights] == another.manifest.files[weights]
        lines = [[replace(line, offset=0) for line in link.ledger()] for link in (one, another)]
        assert lines[0] == lines[1]


def _serve(
    open_learner: OpenLearner,
    settings: Settings,
    rng: random.Random,
    make_sample: MakeSample,
    newest: int = 4,
) -> tuple[list[Record], list[str]]:
    """Learn from a log whose answers the newest versions give; return it, and the versions."""
    log, pieces, versions = Log(rng, make_sample, logged_share=0.5), list[Record](), list[str]()
    for _ in range(6):
        piece = log.draw(40, versions[-newest:])
        versions = _learn(open_learner, settings, piece)
        pieces += piece
    return pieces, versions


@pytest.mark.usefixtures("few_tell_what_serves")
def test_answers_of_the_first_runs_versions_keep_their_age_without_a_user(
    settings: Settings,
    open_learner: OpenLearner,
    replay: Replay,
    rng: random.Random,
    make_sample: MakeSample,
    kafka: Kafka,
    tmp_path: Path,
) -> None:
    """What was answered more releases ago than may be is stale in both."""
    mine = replace(settings, learner=replace(settings.learner, max_version_lag=1))
    pieces, versions = _serve(open_learner, mine, rng, make_sample)
    report = replay(versions[-1], mine, without_user=GONE)

    never = replace(kafka, prefix=f"{kafka.prefix}never-")
    create_topics(never)
    other = replace(mine, kafka=never, state_dir=tmp_path / "never")
    end = line_of(mine, versions[-1])[-1].next
    write(never, *_without(pieces[:end], GONE))
    learner = open_learner(other)
    learner.intake.served = {version: number for number, version in enumerate(versions, 1)}
    wanted = read_on(learner).progress
    assert list(_made(report).values()) == list(wanted.versions)
    again = replace(mine, state_dir=Path(report.directory))
    fates = [
        line.outcome for link in line_of(again, list(wanted.versions)[-1]) for line in link.ledger()
    ]
    assert 0 < fates.count("stale") < fates.count("used")


@pytest.mark.usefixtures("few_tell_what_serves")
def test_the_anchor_moves_in_a_replay_as_it_did_also_to_a_version_before_the_start(
    settings: Settings,
    open_learner: OpenLearner,
    replay: Replay,
    rng: random.Random,
    make_sample: MakeSample,
) -> None:
    mine = replace(settings, learner=replace(settings.learner, anchor_refresh_releases=1))
    _, versions = _serve(open_learner, mine, rng, make_sample, newest=2)
    line = line_of(mine, versions[-1])
    anchors = {link.version: link.manifest.config["anchor"] for link in line}
    older = [
        place
        for place, link in enumerate(line[1:-1], 1)
        if anchors[line[place + 1].version] not in (anchors[link.version], link.version)
    ]
    assert older  # after such a version the anchor moved to one before it
    for start in ("base", line[older[-1]].version):
        report = replay(versions[-1], mine, start=start)
        assert report.same, start
    assert not replay(versions[-1], mine, without_user=GONE).same


def test_practice_is_repeated_with_the_same_file_and_with_no_other(
    settings: Settings,
    open_learner: OpenLearner,
    replay: Replay,
    pieces: list[Record],
    tmp_path: Path,
) -> None:
    path = tmp_path / "practice.jsonl"
    case = {"slice": "w", "messages": [{"role": "user", "content": "w1 w2"}]}
    expected = {"contains": ["w3"]}
    path.write_bytes(to_json({**case, "expect": expected}) + b"\n")
    practice = Practice(prompts=str(path), max_tokens=8, answers=3)
    mine = replace(settings, learner=replace(settings.learner, practice=practice))
    versions = _learn(open_learner, mine, pieces)
    assert line_of(mine, versions[-1])[0].manifest.config["learner"]["practice"]["prompts"]

    moved = path.rename(tmp_path / "elsewhere.jsonl")
    elsewhere = replace(practice, prompts=str(moved))
    again = replace(mine, learner=replace(mine.learner, practice=elsewhere))
    assert replay(versions[-1], again, start="base").same
    stricter = replace(again, guard=replace(again.guard, forbidden_tools=("search",)))
    with pytest.raises(SettingsError, match="practised by rules of the guard with sha256"):
        replay(versions[-1], stricter, start="base")
    with pytest.raises(SettingsError, match="practised on a file with sha256"):
        replay(versions[-1], settings, start="base")
    moved.write_bytes(moved.read_bytes().replace(b"w3", b"w4"))
    with pytest.raises(SettingsError, match="practised on a file with sha256"):
        replay(versions[-1], again, start="base")


def test_what_cannot_be_replayed_says_what_can(
    settings: Settings,
    open_learner: OpenLearner,
    replay: Replay,
    pieces: list[Record],
    tmp_path: Path,
) -> None:
    few = replace(settings, learner=replace(settings.learner, keep_states=1))
    versions = _learn(open_learner, few, pieces)
    with pytest.raises(SettingsError, match=rf"its state must be kept.*base, .*{versions[3][:12]}"):
        replay(versions[4], start=versions[2])
    with pytest.raises(SettingsError, match="must come before"):
        replay(versions[0], start=versions[3])
    with pytest.raises(ManifestError, match="missing"):
        replay("f" * 64, start="base")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(SettingsError, match="is not empty"):
        replay(versions[-1], directory=str(tmp_path / "taken"))
    elsewhere = replace(settings, policy=replace(settings.policy, name="another"))
    with pytest.raises(ManifestError, match="missing"):
        replay(versions[-1], elsewhere)

    state = settings.state_dir / "states" / "assistant" / versions[3] / STATE
    tensors = state.with_name(TENSORS)
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1])
    with pytest.raises(UnavailableError, match="is torn"):
        replay(versions[4])
    tensors.write_bytes(whole)
    state.write_bytes(state.read_bytes().replace(b'"batches":8', b'"batches":9'))
    with pytest.raises(ManifestError, match="is not the state"):
        replay(versions[4])


def test_a_log_that_lost_its_beginning_or_is_another_is_refused(
    settings: Settings,
    open_learner: OpenLearner,
    replay: Replay,
    pieces: list[Record],
    kafka: Kafka,
) -> None:
    versions = _learn(open_learner, settings, pieces)
    another = replace(kafka, prefix=f"{kafka.prefix}another-")
    create_topics(another)
    with pytest.raises(UnavailableError, match="ends at offset 0, but"):
        replay(versions[-1], replace(settings, kafka=another), start="base")
    write(another, *pieces[10:], *pieces[:10])
    with pytest.raises(UnavailableError, match="where the ledger has it: this is another log"):
        replay(versions[-1], replace(settings, kafka=another), start="base")

    line = line_of(settings, versions[-1])
    with admin_client(kafka) as admin:
        place = TopicPartition(SAMPLES.full_name(kafka.prefix), 0)
        admin.delete_records({place: line[0].next})
    with pytest.raises(UnavailableError, match="retention has removed what is needed; give --from"):
        replay(versions[-1], start="base")
    report = replay(versions[-1], start=versions[0])
    assert report.same
    assert report.log_begins == line[0].next
    left_out = replay(versions[-1], without_user=GONE)
    assert (left_out.start, left_out.same) == (versions[0], False)
    assert left_out.removal is not None
    assert left_out.removal.certain
