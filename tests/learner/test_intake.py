"""Where a sample belongs when it is read, and what a commit leaves of it; no broker, no policy."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from contracts.broker import Received
from contracts.codec import encode
from contracts.events import Assignment, Sample
from contracts.judges import is_judge
from contracts.settings import Constraint, Learner, Policy, Settings
from contracts.topics import SAMPLES
from learner.experience import experience_of
from learner.intake import Intake
from learner.ledger import outcome_of
from learner.progress import Progress
from learner.revision import Taught
from learner.usable import Limits
from tests.learner.conftest import MakeSample

PROGRESS = Progress(policy="assistant", base="base")
LIMITS = Limits(64, 48)


@pytest.fixture
def intake() -> Intake:
    settings = Settings(policy=Policy(name="assistant"), learner=Learner(batch_samples=2))
    return Intake(settings, None, (), LIMITS)


def _take(intake: Intake, sample: Sample, progress: Progress = PROGRESS) -> None:
    record = encode(SAMPLES, replace(sample, correction=None), source="test")
    arrival = intake.read(
        Received(SAMPLES, 0, 0, record.key, record.value, record.headers), progress
    )
    if arrival is not None:
        intake.add(arrival, progress)


def _ids(intake: Intake) -> list[str]:
    return [arrival.experience.sample_id for arrival in intake.pending.values()]


def test_a_newer_sample_takes_the_place_of_one_that_waits(
    intake: Intake, make_sample: MakeSample
) -> None:
    first = make_sample(1)
    _take(intake, first)
    _take(intake, make_sample(1, id="newer", revision=1))
    assert _ids(intake) == ["newer"]
    assert not intake.is_full
    ((superseded, why),) = intake.superseded
    assert (superseded.experience.sample_id, why) == (first.id, "superseded")
    _take(intake, make_sample(2))
    assert intake.is_full


def test_a_sample_without_a_signal_takes_no_place(intake: Intake, make_sample: MakeSample) -> None:
    first = make_sample(1)
    _take(intake, first)
    _take(intake, make_sample(1, id="silent", revision=1, status="censored"))
    _take(intake, make_sample(2, id="alone", status="censored"))
    assert _ids(intake) == [first.id]
    assert [(one.experience.sample_id, why) for one, why in intake.superseded] == [
        ("silent", "superseded")
    ]
    assert [arrival.experience.sample_id for arrival in intake.silent.values()] == ["alone"]


def test_what_a_judge_said_nothing_about_is_no_evidence_whatever_silence_is_worth(
    make_sample: MakeSample,
) -> None:
    policy = Policy(name="assistant", judge_share=0.5)
    intake = Intake(Settings(policy=policy), None, (), LIMITS)
    judge = next(one for one in map(str, range(9)) if is_judge("assistant", one, 0.5))
    said, quiet = (make_sample(n, user_id=judge) for n in (1, 2))
    progress = replace(PROGRESS, evaluation=(experience_of(said),))

    _take(intake, replace(quiet, status="default"), progress)
    _take(intake, replace(said, id="taken back", revision=1, status="default"), progress)

    assert not intake.judged
    assert [*intake.silent] == [quiet.decision_id]
    assert [(one.experience.sample_id, why) for one, why in intake.superseded] == [
        ("taken back", "withdrawn")
    ]


def test_what_is_taken_back_of_a_decision_that_never_came_is_silence(
    intake: Intake, make_sample: MakeSample
) -> None:
    """Streams that are behind by more than a window send so what nobody said anything about."""
    old = make_sample(1)
    known = make_sample(4)
    progress = replace(
        PROGRESS,
        forgotten_before=old.decided_at.timestamp(),
        taught={known.decision_id: Taught(1.0)},
    )
    taken = {"status": "censored", "reward": 0.0, "withdrawn": True}
    late = [
        make_sample(1, id="may have taught", **taken),
        make_sample(2, id="never came", violation=True, **taken),
        make_sample(3, id="came and went", revision=1, **taken),
        make_sample(4, id="taught", **taken),
    ]
    for sample in late:
        _take(intake, sample, progress)
    assert [a.experience.sample_id for a in intake.silent.values()] == ["never came"]
    assert {a.experience.sample_id: why for a, why in intake.superseded} == dict.fromkeys(
        ("may have taught", "came and went", "taught"), "withdrawn"
    )


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_change_of_what_may_be_forgotten_is_told_and_not_learned_as_new(
    intake: Intake, make_sample: MakeSample, withdrawn: bool
) -> None:
    old, newer = make_sample(1), make_sample(5)
    progress = replace(PROGRESS, forgotten_before=old.decided_at.timestamp())

    _take(intake, replace(old, id="late", revision=1, withdrawn=withdrawn), progress)
    _take(intake, replace(old, id="first", decision_id="never seen"), progress)
    _take(intake, replace(newer, id="known", revision=1), progress)

    assert [(one.experience.sample_id, why) for one, why in intake.superseded] == [
        ("late", "forgotten")
    ]
    assert _ids(intake) == ["first", "known"]


def test_what_waits_or_is_remembered_or_of_a_judge_is_not_forgotten(
    make_sample: MakeSample,
) -> None:
    policy = Policy(name="assistant", judge_share=0.5)
    settings = Settings(policy=policy, learner=Learner(batch_samples=9))
    intake = Intake(settings, None, (), LIMITS)
    users = [f"u{n}" for n in range(50)]
    judge, person = (
        next(one for one in users if is_judge("assistant", one, 0.5) is wanted)
        for wanted in (True, False)
    )
    waiting, taught, judged = (
        make_sample(n, user_id=user) for n, user in enumerate((person, person, judge))
    )
    progress = replace(
        PROGRESS,
        taught={taught.decision_id: Taught(1.0)},
        forgotten_before=judged.decided_at.timestamp(),
    )
    _take(intake, waiting, progress)
    for n, one in enumerate((waiting, taught, judged)):
        _take(intake, replace(one, id=f"again-{n}", revision=1), progress)
    assert _ids(intake) == ["again-0", "again-1"]
    assert [one.experience.sample_id for one in intake.judged.values()] == ["again-2"]


@pytest.mark.parametrize(
    ("outcome", "known"),
    [
        *[("stale", True), ("log-ratio", True), ("step-skipped", True), ("judge", True)],
        *[("no-reward", False), ("imputed", False), ("withdrawn", False)],
    ],
)
def test_what_was_rated_and_not_learned_from_is_not_taken_for_silent(
    intake: Intake, make_sample: MakeSample, outcome: str, known: bool
) -> None:
    one = experience_of(make_sample(1))
    guessed = replace(experience_of(make_sample(2)), imputed="a-model")
    lines = (outcome_of(one, outcome, {}), outcome_of(guessed, "stale", {}))
    progress = replace(PROGRESS, ledger=lines)
    for number in (1, 2):
        silent = make_sample(number, id=f"silent-{number}", revision=1, status="censored")
        _take(intake, silent, progress)
    taken = [arrival.experience.sample_id for arrival in intake.silent.values()]
    assert taken == (["silent-2"] if known else ["silent-1", "silent-2"])
    _take(intake, make_sample(1, id="again", revision=2, status="censored"), PROGRESS)
    assert "again" in [one.experience.sample_id for one in intake.silent.values()]


def test_a_commit_leaves_the_ids_that_it_remembers_and_nothing_else(
    intake: Intake, make_sample: MakeSample
) -> None:
    samples = [make_sample(number) for number in (1, 2)]
    for sample in (*samples, samples[0]):
        _take(intake, sample)
    assert (len(intake.arrivals), intake.duplicates) == (2, 1)

    intake.begin([samples[0].id])
    assert intake.arrivals == ()
    for sample in samples:
        _take(intake, sample)
    assert _ids(intake) == [samples[1].id]
    assert intake.duplicates == 2


def test_an_answer_of_another_lines_version_has_the_age_it_had_there(
    intake: Intake, make_sample: MakeSample
) -> None:
    intake.served = {"elsewhere": 3}
    released = replace(PROGRESS, versions={"own": 1})
    for number, version in enumerate(("own", "elsewhere", "unknown")):
        served = Assignment(policy="assistant", policy_version=version)
        _take(intake, make_sample(number, assignment=served), released)
    found = [arrival.experience.behaviour_sequence for arrival in intake.pending.values()]
    assert found == [1, 3, 0]


def _held(intake: Intake) -> dict[str, bool]:
    """Which of the samples that wait have tokens."""
    found = [arrival.experience for arrival in intake.arrivals]
    return {e.sample_id: bool(e.prompt_ids or e.token_ids or e.logprobs) for e in found}


def test_what_teaches_nothing_waits_without_its_tokens(
    intake: Intake, make_sample: MakeSample
) -> None:
    taught, old, newer = (make_sample(n) for n in (1, 2, 30))
    progress = replace(
        PROGRESS,
        taught={taught.decision_id: Taught(1.0)},
        forgotten_before=old.decided_at.timestamp(),
    )
    _take(intake, replace(newer, id="older"), progress)
    _take(intake, replace(newer, id="newer", revision=1), progress)
    _take(intake, replace(newer, id="quiet", revision=2, status="censored"), progress)
    _take(intake, replace(old, id="forgotten", revision=1), progress)
    _take(intake, replace(taught, id="undoes", revision=1, withdrawn=True), progress)
    _take(intake, make_sample(40, id="withdrawn", revision=1, withdrawn=True), progress)
    _take(intake, make_sample(41, id="long", token_ids=(20,) * 100), progress)
    assert _held(intake) == {
        **dict.fromkeys(("newer", "undoes"), True),
        **dict.fromkeys(("older", "quiet", "forgotten", "withdrawn", "long"), False),
    }
    assert intake.pending[make_sample(41).decision_id].experience.unusable == "too-long"


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, ["broken"]),
        ({"reward_model": "a-model"}, ["broken", "quiet"]),
        ({"reward_model": "a-model", "imputed_weight": 0.0}, ["broken"]),
        ({"constraint": Constraint(mode="off")}, []),
        ({"reward_model": "a-model", "constraint": Constraint(mode="off")}, ["quiet"]),
    ],
)
def test_silent_samples_wait_with_their_tokens_where_they_may_teach(
    make_sample: MakeSample, changes: dict[str, object], held: list[str]
) -> None:
    learner = replace(Learner(batch_samples=9), **changes)
    settings = Settings(policy=Policy(name="assistant", judge_share=0.5), learner=learner)
    intake = Intake(settings, None, (), LIMITS)
    users = [f"u{n}" for n in range(50)]
    judge = next(one for one in users if is_judge("assistant", one, 0.5))
    person = next(one for one in users if not is_judge("assistant", one, 0.5))
    silent = [("broken", person, True), ("quiet", person, False), ("judge", judge, True)]
    for number, (name, user, violation) in enumerate(silent):
        said = {"id": name, "user_id": user, "violation": violation, "status": "censored"}
        _take(intake, make_sample(number, **said))
    assert [name for name, tokens in _held(intake).items() if tokens] == held
