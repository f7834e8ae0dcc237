"""What a reward model learns from: the last word on each decision, and nothing that judges said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from transformers import AutoTokenizer

from contracts.broker import Received
from contracts.codec import encode
from contracts.errors import UnavailableError
from contracts.events import Event, Preference, Sample
from contracts.judges import is_judge
from contracts.manifest import verify_signed
from contracts.settings import Kafka, Policy, Settings, to_environment
from contracts.signing import trusted_keys
from contracts.topics import SAMPLES
from learner.__main__ import main
from learner.reward_card import read_card
from learner.reward_lessons import Read, lessons_of
from learner.reward_training import Pair, Rated
from tests.messages import says
from tests.topic_log import write

MakeSample = Callable[..., Sample]
POLICY = Policy(name="assistant")
VOCABULARY = 48
USERS = [u for u in map("user-{}".format, range(40)) if not is_judge("assistant", u, 0.2)][:8]


def _preference(sample: Sample, wanted: str = "w1 w2") -> Preference:
    return Preference(
        id=f"preference-of-{sample.id}",
        time=sample.time,
        decision_id=sample.decision_id,
        feedback_id="f",
        session_id=sample.session_id,
        user_id=sample.user_id,
        assignment=sample.assignment,
        messages=sample.messages,
        chosen=says(wanted),
        rejected=says("w5"),
        prompt_token_ids=sample.prompt_token_ids,
        rejected_token_ids=sample.token_ids,
        rejected_logprobs=sample.logprobs,
        decided_at=sample.decided_at,
        feedback_time=sample.feedback_time,
    )


def _records(events: list[Event]) -> Iterator[tuple[Received, Event]]:
    for offset, event in enumerate(events):
        yield Received(SAMPLES, 0, offset, b"k", b"", []), event


def _read(tiny_model: Path, events: list[Event], limit: int = 1000) -> Read:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return lessons_of(_records(events), POLICY, tokenizer, VOCABULARY, limit)


def _others(make_sample: MakeSample, count: int = 80) -> list[Event]:
    return [make_sample(1000 + n, user_id=USERS[n % len(USERS)]) for n in range(count)]


def test_samples_are_rewarded_answers_and_preferences_are_pairs(
    tiny_model: Path, make_sample: MakeSample
) -> None:
    sample = make_sample(1)
    found = _read(tiny_model, [*_others(make_sample), sample, _preference(sample)])
    rated, pair = found.lessons[-2:]
    assert isinstance(rated, Rated)
    assert isinstance(pair, Pair)
    assert (rated.reward, rated.answer.response_ids) == (sample.reward, sample.token_ids)
    assert pair.rejected.response_ids == sample.token_ids
    assert pair.chosen.response_ids[-1] == 3  # the end of the turn is a part of the answer
    assert (found.first_offset, found.next_offset) == (0, 82)
    assert found.as_of == max(make_sample(1000 + n).decided_at for n in range(80))


def test_the_last_revision_of_a_decision_holds_and_a_withdrawn_one_teaches_nothing(
    tiny_model: Path, make_sample: MakeSample
) -> None:
    first, gone = make_sample(1, reward=1.0), make_sample(2)
    again = msgspec.structs.replace(first, id="again", revision=1, reward=-1.0)
    withdrawn = msgspec.structs.replace(gone, id="gone", revision=1, reward=0.0, withdrawn=True)
    events = [first, gone, _preference(gone), *_others(make_sample), again, withdrawn]
    found = _read(tiny_model, events)
    assert len(found.lessons) == 81
    last = found.lessons[-1]
    assert isinstance(last, Rated)
    assert last.reward == -1.0
    assert found.first_offset == 3


def test_a_correction_that_was_taken_back_is_no_pair(
    tiny_model: Path, make_sample: MakeSample
) -> None:
    sample = make_sample(1, correction=says("w1 w2"))
    events = [sample, _preference(sample), *_others(make_sample)]
    assert len(_read(tiny_model, events).lessons) == 82
    bare = msgspec.structs.replace(sample, id="bare", revision=1, correction=None)
    found = _read(tiny_model, [*events, bare])
    assert not any(isinstance(one, Pair) for one in found.lessons)
    assert len(found.lessons) == 81


def test_judges_other_policies_and_tokens_that_the_base_does_not_know_are_left_out(
    tiny_model: Path, make_sample: MakeSample
) -> None:
    judge = next(f"u{n}" for n in range(99) if is_judge("assistant", f"u{n}", POLICY.judge_share))
    elsewhere = msgspec.structs.replace(make_sample(3).assignment, policy="other")
    strange: list[Event] = [
        make_sample(1, user_id=judge),
        _preference(make_sample(2, user_id=judge)),
        make_sample(3, assignment=elsewhere),
        make_sample(4, token_ids=(VOCABULARY,)),
        make_sample(5, prompt_token_ids=()),
    ]
    found = _read(tiny_model, [*_others(make_sample), *strange])
    assert len(found.lessons) == 80
    assert found.next_offset == 80


def test_the_newest_lessons_are_taken_and_too_few_are_refused(
    tiny_model: Path, make_sample: MakeSample
) -> None:
    found = _read(tiny_model, _others(make_sample, 200), limit=70)
    assert (len(found.lessons), found.first_offset, found.next_offset) == (70, 130, 200)
    with pytest.raises(UnavailableError, match="59 rewarded answers and pairs"):
        _read(tiny_model, _others(make_sample, 59))
    of_four: list[Event] = [make_sample(n, user_id=USERS[n % 4]) for n in range(80)]
    with pytest.raises(UnavailableError, match=r"by 4 users; at least 60 by 5 users"):
        _read(tiny_model, of_four)


def test_whoever_says_much_does_not_push_out_the_others(
    tiny_model: Path, make_sample: MakeSample
) -> None:
    flood: list[Event] = [make_sample(5000 + n, user_id=USERS[0]) for n in range(600)]
    found = _read(tiny_model, [*_others(make_sample, 100), *flood], limit=120)
    assert len(found.lessons) == 120
    assert Counter(lesson.user for lesson in found.lessons)[USERS[0]] == 120 - 87
    assert found.next_offset == 700


def test_a_reward_that_nobody_gave_teaches_nothing_and_takes_the_place_of_what_was_said(
    tiny_model: Path, make_sample: MakeSample
) -> None:
    rated = make_sample(1)
    silent: list[Event] = [
        make_sample(2000 + n, status="default", user_id=USERS[0]) for n in range(50)
    ]
    taken_back = msgspec.structs.replace(rated, id="back", revision=1, status="default")
    events = [rated, _preference(rated), *_others(make_sample), *silent, taken_back]
    found = _read(tiny_model, events)
    assert len(found.lessons) == 80
    assert found.first_offset == 2


def test_the_command_trains_on_the_topic_and_leaves_a_signed_version(
    settings: Settings,
    kafka: Kafka,
    make_sample: MakeSample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(kafka, *(encode(SAMPLES, one, source="test") for one in _others(make_sample, 90)))
    mine = msgspec.structs.replace(settings, kafka=kafka)
    for name, value in to_environment(mine).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(["reward-model", "--out", str(tmp_path / "models"), "--lessons", "80"]) == 0
    directory = Path(capsys.readouterr().out.strip())
    manifest = verify_signed(directory, directory.name, trusted_keys(settings))
    assert (manifest.form, manifest.trained_on[0].first) == ("reward-model", 10)
    card = read_card(directory)
    assert card.lessons.trained_rewards == manifest.samples == 56
    assert card.on_rewards is not None


@pytest.mark.parametrize(
    ("option", "given", "allowed"),
    [
        *[("--lessons", given, "60 or more") for given in ("0", "-5", "59")],
        *[("--epochs", given, "1 or more") for given in ("0", "-1")],
        *[("--seconds", given, "a finite number above 0") for given in ("0", "-1", "nan", "inf")],
    ],
)
def test_an_option_that_leaves_nothing_to_learn_from_is_named(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    given: str,
    allowed: str,
) -> None:
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(["reward-model", "--out", "models", f"{option}={given}"]) == 1
    said = capsys.readouterr().err
    assert f"{option} is {given}" in said or f"{option} is {float(given)}" in said
    assert f"give {allowed}" in said
