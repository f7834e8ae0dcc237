"""A replay without a user says what is the user's doing, and refuses what it cannot leave out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from kafka import TopicPartition
from msgspec.structs import replace

from contracts.codec import Record, encode
from contracts.errors import ManifestError, SettingsError
from contracts.manifest import Manifest
from contracts.settings import Kafka, Settings
from contracts.topics import SAMPLES
from learner import publish
from learner.ledger import Outcome, outcome_of
from learner.publish import LEDGER
from learner.replay_report import ReplayReport
from learner.version_line import line_of
from learner.version_state import states_directory
from tests.broker_contract.clients import admin_client
from tests.learner.kill_plan import MakeSample

Learn = Callable[[Settings, Sequence[Record]], list[str]]
Replay = Callable[..., ReplayReport]

EARLY, LATE = 40, 4
GONE = "user-2"


@pytest.fixture
def settings(settings: Settings, kafka: Kafka) -> Settings:
    return replace(settings, kafka=kafka, learner=replace(settings.learner, keep_states=8))


@pytest.fixture
def pieces(make_sample: MakeSample) -> list[Record]:
    """Samples of three users, then those of one who came late, then of the three again."""
    numbers = range(2 * EARLY + LATE)
    late = range(EARLY, EARLY + LATE)
    samples = [
        make_sample(n, **({"user_id": "user-late"} if n in late else {}), correction=None)
        for n in numbers
    ]
    return [encode(SAMPLES, sample, source="test") for sample in samples]


def test_a_user_who_came_late_is_left_out_from_the_last_state_before_them(
    settings: Settings, learn: Learn, replay: Replay, pieces: list[Record]
) -> None:
    versions = learn(settings, pieces)
    line = line_of(settings, versions[-1])
    older = [link.version for link in line if link.next <= EARLY]

    report = replay(versions[-1], settings, start="", without_user="user-late")
    assert report.start == older[-1]
    assert report.removal is not None
    assert (report.removal.samples, report.removal.first_offset) == (LATE, EARLY)
    assert set(report.removal.versions) == {versions[len(older)]}
    assert (report.removal.control, report.is_done) == (0, True)

    whole = replay(versions[-1], settings, without_user="user-late")
    assert whole.removal is not None
    assert (whole.removal.control, whole.removal.unlike) == (len(older), "")
    assert (whole.is_done, whole.same) == (True, False)
    assert [one.remade for one in whole.versions[len(older) :]] == [
        one.remade for one in report.versions
    ]
    with pytest.raises(SettingsError, match=f"user's sample at offset {EARLY}"):
        replay(versions[-1], settings, start=versions[-2], without_user="user-late")


@pytest.mark.parametrize("start", ["base", ""])
def test_what_other_code_makes_otherwise_is_not_told_as_the_users_doing(
    settings: Settings,
    learn: Learn,
    replay: Replay,
    pieces: list[Record],
    monkeypatch: pytest.MonkeyPatch,
    start: str,
) -> None:
    """Also where no version from before the user is made again."""
    versions = learn(settings, pieces)
    monkeypatch.setattr("learner.publish.code_version", lambda: "another release")
    report = replay(versions[-1], settings, start=start, without_user="user-late")
    assert report.removal is not None
    assert report.removal.samples == LATE
    assert report.removal.unlike == report.versions[0].version
    assert report.why[0].endswith(", this is another release")
    assert not report.is_done


def test_a_version_from_before_the_user_that_comes_out_different_is_told_with_its_reasons(
    settings: Settings, learn: Learn, replay: Replay, pieces: list[Record]
) -> None:
    """By the same code: settings changed within it, as another processor would change sums."""
    learn(settings, pieces[:8])
    faster = replace(settings, learner=replace(settings.learner, learning_rate=4e-3))
    versions = learn(faster, pieces[8:])
    report = replay(versions[-1], faster, without_user="user-late")
    assert report.removal is not None
    assert report.removal.control > 0
    assert report.removal.unlike == versions[0]
    assert any("settings that changed between two versions" in why for why in report.why)
    assert not report.is_done


def test_a_user_who_has_no_sample_is_refused(
    settings: Settings, learn: Learn, replay: Replay, pieces: list[Record]
) -> None:
    versions = learn(settings, pieces[:32])
    for start in ("", "base"):
        with pytest.raises(SettingsError, match="has read a sample of user 'User-2' under policy"):
            replay(versions[-1], settings, start=start, without_user="User-2")


def test_a_ledger_that_lost_the_users_line_is_not_believed(
    settings: Settings, learn: Learn, replay: Replay, pieces: list[Record]
) -> None:
    """Else a state that learned from the user would be taken for one from before them."""
    versions = learn(settings, pieces)
    line = line_of(settings, versions[-1])
    taught = next(link for link in line if link.next > EARLY)
    assert taught.version not in versions[-2:]
    shutil.rmtree(states_directory(settings) / taught.version)
    path = taught.directory / LEDGER
    kept = [one for one in path.read_bytes().splitlines(True) if b"user-late" not in one]
    path.write_bytes(b"".join(kept))
    with pytest.raises(ManifestError, match="differs from the manifest"):
        replay(versions[-1], settings, start="", without_user="user-late")


def test_what_several_processes_learned_is_refused_before_the_log_is_read(
    settings: Settings,
    learn: Learn,
    replay: Replay,
    pieces: list[Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = publish._manifest

    def of_two(*given: Any) -> Manifest:
        manifest = alone(*given)
        return replace(manifest, config={**manifest.config, "processes": 2})

    with monkeypatch.context() as together:
        together.setattr(publish, "_manifest", of_two)
        several = learn(settings, pieces[:EARLY])
    versions = learn(settings, pieces[EARLY:])
    assert replay(versions[-1], settings, start=several[-1]).same

    def read(*_: object) -> None:
        raise AssertionError("the log was read")

    for place in ("learner.rebuild.LogPart", "learner.replay_user.LogPart"):
        monkeypatch.setattr(place, read)
    for end in (several[-1], versions[-1]):
        for more in ({}, {"without_user": GONE}):
            with pytest.raises(SettingsError, match=rf"{several[-1][:12]} .* by 2 processes"):
                replay(end, settings, **more)


def test_a_start_whose_own_ledger_names_the_user_is_refused_though_older_ones_are_gone(
    settings: Settings, learn: Learn, replay: Replay, pieces: list[Record], kafka: Kafka
) -> None:
    versions = learn(settings, pieces)
    line = line_of(settings, versions[-1])
    named = {o.offset: o.user_id for link in line for o in link.ledger()}
    begun = next(n for n, link in enumerate(line) if link.next > EARLY)
    start = line[begun]
    assert "user-late" in (named[at] for at in range(EARLY, start.next) if at in named)
    for link in line[:begun]:
        shutil.rmtree(link.directory)
    with admin_client(kafka) as admin:
        place = TopicPartition(SAMPLES.full_name(kafka.prefix), 0)
        admin.delete_records({place: start.next})
    with pytest.raises(SettingsError, match=f"has read the user's sample at offset {EARLY}"):
        replay(versions[-1], settings, start=start.version, without_user="user-late")


def test_where_ledgers_name_no_users_the_log_has_to_tell_who_was_there(
    settings: Settings,
    learn: Learn,
    replay: Replay,
    pieces: list[Record],
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nameless(*given: Any) -> Outcome:
        return replace(outcome_of(*given), user_id="")

    for place in ("learner.update.outcome_of", "learner.progress.outcome_of"):
        monkeypatch.setattr(place, nameless)
    versions = learn(settings, pieces)
    told = replay(versions[-1], settings, start="", without_user="user-late")
    assert told.removal is not None
    assert (told.removal.certain, told.removal.first_offset) == (True, EARLY)
    line = line_of(settings, versions[-1])
    assert [link.version for link in line if link.next <= EARLY][-1:] == [told.start]

    with admin_client(kafka) as admin:
        place = TopicPartition(SAMPLES.full_name(kafka.prefix), 0)
        admin.delete_records({place: line[0].next})
    with pytest.raises(SettingsError, match="cannot be told; give --from"):
        replay(versions[-1], settings, start="", without_user=GONE)
    left_out = replay(versions[-1], settings, start=versions[0], without_user=GONE)
    assert left_out.log_begins == line[0].next
    assert left_out.removal is not None
    assert left_out.removal.samples > 0
    assert (left_out.removal.certain, left_out.removal.unlike) == (False, "")
    assert not left_out.is_done  # whether they taught the start nobody knows
    nobody = replay(versions[-1], settings, start=versions[0], without_user="user-never")
    assert nobody.same
    assert not nobody.is_done  # nothing was left out
