"""The arithmetic of a reward: which signals count, how much, and where they came from."""

from __future__ import annotations

from datetime import timedelta
from math import inf, nan
from typing import Any

import msgspec
import pytest

from contracts.events import GuardReport, Sampling
from contracts.settings import RewardComponent, Streams
from streams.reward import Rewarding, logprobs_are_usable, preference_of, reward_of, sample_of
from streams.signals import Signal
from streams.similarity import MAX_WORDS, kept_in_order, similarity
from tests.messages import calls, says
from tests.streams.rewarding_by_hand import NOW, evidence_on, rewarded, safety_of


def test_without_a_signal_the_reward_is_censored(decision: Any) -> None:
    reward = rewarded(decision())
    assert (reward.status, reward.value, reward.components) == ("censored", None, ())


def test_without_a_signal_the_declared_default_holds_and_says_so(
    decision: Any, feedback: Any
) -> None:
    made, streams = decision(), Streams(default_reward=0.25)
    reward = rewarded(made, streams=streams)
    assert (reward.status, reward.value, reward.components) == ("default", 0.25, ())
    told = rewarded(made, feedback(made, score=-1.0), streams=streams)
    assert (told.status, told.value) == ("final", -1.0)


def test_the_newest_rating_holds_whatever_the_order(decision: Any, feedback: Any) -> None:
    made = decision()
    first = feedback(made, score=1.0)
    second = feedback(made, score=-0.5, time=made.time + timedelta(seconds=1))
    assert rewarded(made, first, second).value == rewarded(made, second, first).value == -0.5
    assert rewarded(made, first, second).components[0].event_ids == (second.id,)


def test_outcomes_are_averaged_over_names(decision: Any, feedback: Any) -> None:
    made = decision()
    events = [
        feedback(made, "outcome", name="ticket", score=-1.0),
        feedback(made, "outcome", name="ticket", score=1.0, time=made.time + timedelta(seconds=1)),
        feedback(made, "outcome", name="sale", score=0.0),
    ]
    assert rewarded(made, *events).components[0].value == 0.5


def test_many_reports_count_once_and_are_all_named(decision: Any, feedback: Any) -> None:
    made = decision()
    reports = [feedback(made, "report") for _ in range(3)]
    (component,) = rewarded(made, *reports).components
    assert component.value == -1.0
    assert set(component.event_ids) == {report.id for report in reports}


def test_the_sum_is_weighted_clipped_per_signal_and_in_total(decision: Any, feedback: Any) -> None:
    made = decision()
    events = feedback(made, score=1.0), feedback(made, "outcome", score=1.0)
    part = RewardComponent(weight=0.5, clip=0.4)
    assert rewarded(made, *events, rating=part).value == pytest.approx(0.2)
    assert rewarded(made, *events).value == 1.0


def test_a_violation_alone_makes_a_finalrewarded(decision: Any) -> None:
    made = decision(answer="Write to jane.doe@example.org")
    reward = rewarded(made)
    assert (reward.status, reward.value) == ("final", -1.0)
    assert reward.components[0].event_ids == (safety_of(made).id,)


def test_a_signal_without_a_weight_does_not_count(decision: Any, feedback: Any) -> None:
    made = decision()
    only_rating: dict[str, Any] = {"rating": RewardComponent(weight=1.0)}
    assert rewarded(made, feedback(made, "report"), **only_rating).status == "censored"


def test_a_correction_is_worth_what_it_kept_of_the_answer(decision: Any, feedback: Any) -> None:
    made = decision(answer="one two three four")
    for text, kept in (("one two three four", 1.0), ("one two", 2 / 3), ("none of it", 0.0)):
        wanted = says(text)
        (component,) = rewarded(made, feedback(made, "correction", correction=wanted)).components
        assert component.value == pytest.approx(2 * kept - 1)


def test_tool_calls_are_compared_by_name_and_canonical_arguments() -> None:
    one = calls("search", '{"query": "reset", "limit": 5}')
    assert similarity(one, calls("search", '{"limit":5,"query":"reset"}')) == 1.0
    assert 0.0 < similarity(one, calls("search", '{"limit":5,"query":"start"}')) < 1.0
    assert similarity(one, calls("escalate", '{"query": "reset", "limit": 5}')) == 0.0
    assert similarity(one, says("reset")) == 0.0


def test_words_count_as_kept_when_their_order_is() -> None:
    for one, other, kept in (
        ("hold the red button", "please hold the button now", 3),
        ("a b c d", "d c b a", 1),
        ("x x x", "x y x", 2),
        ("a b", "", 0),
    ):
        assert kept_in_order(one.split(), other.split()) == kept
        assert kept_in_order(other.split(), one.split()) == kept
    assert similarity(says(""), says("")) == 1.0


class _Word(str):
    """A word that counts how often it is looked at."""

    looks = 0

    def __hash__(self) -> int:
        _Word.looks += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        _Word.looks += 1
        return super().__eq__(other)


def test_a_correction_of_one_word_repeated_is_compared_in_a_few_looks_at_each_word() -> None:
    said = [_Word("x") for _ in range(MAX_WORDS)]
    wanted = [_Word(word) for word in ["x", "y"] * (MAX_WORDS // 2)]
    assert kept_in_order(said, wanted) == MAX_WORDS // 2
    assert _Word.looks <= 4 * (len(said) + len(wanted))


def test_words_beyond_the_bound_are_not_compared() -> None:
    assert similarity(says("x " * MAX_WORDS + "y"), says("x " * MAX_WORDS + "z")) == 1.0


def test_a_decision_without_a_reward_has_a_sample_only_where_that_is_wanted_and_it_says_so(
    decision: Any, feedback: Any
) -> None:
    made = decision()
    silent = evidence_on(made)
    assert sample_of(silent, rewarded(made)) is None
    sample = sample_of(silent, rewarded(made), send_censored=True)
    assert sample is not None
    assert (sample.status, sample.reward, sample.withdrawn) == ("censored", 0.0, False)
    assert sample.token_ids == made.token_ids

    rating = feedback(made, score=-1.0)
    told = sample_of(evidence_on(made, rating), rewarded(made, rating), send_censored=True)
    assert told is not None
    assert (told.status, told.reward) == ("final", -1.0)
    streams = Streams(default_reward=0.25)
    default = sample_of(silent, rewarded(made, streams=streams), send_censored=True)
    assert default is not None
    assert (default.status, default.reward) == ("default", 0.25)


def test_a_sample_says_how_its_answer_was_drawn(decision: Any, feedback: Any) -> None:
    made = decision(sampling=Sampling(temperature=0.5, max_tokens=8))
    rating = feedback(made)
    sample = sample_of(evidence_on(made, rating), rewarded(made, rating))
    assert sample is not None
    assert (sample.temperature, sample.max_tokens) == (0.5, 8)


def test_where_the_guard_spoke_in_the_policys_place_nothing_is_sent_without_a_reward(
    decision: Any,
) -> None:
    report = GuardReport(action="blocked", where="answer", drawn=says("what the policy said"))
    made = msgspec.structs.replace(decision(), guard=report)
    reward = rewarded(made)
    assert reward.status == "censored"
    assert sample_of(evidence_on(made), reward, send_censored=True) is None


def test_a_violation_that_the_guard_kept_back_is_sent_without_a_reward(decision: Any) -> None:
    drawn = says("Write to jane.doe@example.org")
    report = GuardReport(action="blocked", where="answer", drawn=drawn)
    made = msgspec.structs.replace(decision(answer="That stays with us."), guard=report)
    reward = rewarded(made, streams=Streams(reward={"rating": RewardComponent(weight=1.0)}))
    assert reward.status == "censored"
    sample = sample_of(evidence_on(made), reward, send_censored=True)
    assert sample is not None
    assert (sample.status, sample.violation, sample.token_ids) == ("censored", True, made.token_ids)
    assert sample_of(evidence_on(made), reward) is None


def test_a_sample_says_what_each_signal_added_to_its_reward(decision: Any, feedback: Any) -> None:
    made = decision()
    told = [
        feedback(made, score=-0.5),
        feedback(made, "outcome", name="tool", score=1.0),
        feedback(made, "outcome", name="ticket", score=0.5),
    ]
    reward = rewarded(made, *told)
    sample = sample_of(evidence_on(made, *told), reward)
    assert sample is not None
    assert sample.signals == pytest.approx({"rating": -0.5, "tool": 0.6, "outcome": 0.3})
    assert sample.reward == pytest.approx(sum(sample.signals.values()))


@pytest.mark.parametrize(
    "changed",
    [
        {"sampling": Sampling(top_p=0.9)},
        {"sampling": Sampling(top_k=20)},
        {"sampling": Sampling(temperature=0.0)},
        {"logprobs": (-0.5,)},
    ],
)
def test_logprobs_of_another_distribution_are_not_usable(
    decision: Any, feedback: Any, changed: dict[str, Any]
) -> None:
    assert logprobs_are_usable(decision())
    made = decision(**changed)
    assert not logprobs_are_usable(made)
    rating = feedback(made)
    sample = sample_of(evidence_on(made, rating), rewarded(made, rating))
    assert sample is not None
    assert sample.logprobs == ()


def test_equal_input_gives_equal_ids(decision: Any, feedback: Any) -> None:
    made = decision()
    rating = feedback(made)
    assert rewarded(made, rating) == rewarded(made, rating)


def test_the_time_of_feedback_lies_between_its_decision_and_the_present(
    decision: Any, feedback: Any
) -> None:
    made = decision(time=NOW - timedelta(seconds=60))
    for seconds, wanted in ((-3600, made.time), (20, made.time + timedelta(seconds=20)), (90, NOW)):
        rating = feedback(made, time=made.time + timedelta(seconds=seconds))
        sample = sample_of(evidence_on(made, rating), rewarded(made, rating))
        assert sample is not None
        assert sample.feedback_time == wanted


def test_what_people_say_of_the_guards_words_is_not_said_of_the_policy(
    decision: Any, feedback: Any
) -> None:
    drawn = decision(answer="Her address is jane.doe@example.org.")
    report = GuardReport(action="blocked", where="answer", drawn=drawn.answer)
    served = msgspec.structs.replace(drawn, answer=says("Sorry."), action="refuse", guard=report)
    praised = rewarded(served, feedback(served, "rating", score=1.0))
    assert [component.name for component in praised.components] == ["safety"]
    assert praised.value == -1.0


def test_a_correction_becomes_a_pair_of_the_persons_answer_over_ours(
    decision: Any, feedback: Any
) -> None:
    made, wanted = decision(answer="one two"), says("one three")
    event = feedback(made, "correction", correction=wanted)
    pair = preference_of(evidence_on(made, event), rewarded(made, event), wanted)
    assert pair is not None
    assert (pair.chosen, pair.rejected, pair.feedback_id) == (wanted, made.answer, event.id)
    assert (pair.rejected_token_ids, pair.rejected_logprobs) == (made.token_ids, made.logprobs)
    same = feedback(made, "correction", correction=made.answer)
    assert preference_of(evidence_on(made, same), rewarded(made, same), made.answer) is None


def test_what_was_taken_back_leaves_a_sample_that_says_so(decision: Any, feedback: Any) -> None:
    made = decision()
    rating = feedback(made)
    taken_back = feedback(made, "retraction", retracts=rating.id)
    reward = rewarded(made, rating, taken_back)
    assert (reward.status, reward.value) == ("censored", None)
    evidence = evidence_on(made, rating, taken_back)
    assert sample_of(evidence, reward) is None
    sample = sample_of(evidence, reward, withdrawn=True)
    assert sample is not None
    assert (sample.withdrawn, sample.reward) == (True, 0.0)


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_signal_that_is_no_number_makes_no_reward(decision: Any, value: float) -> None:
    polite = RewardComponent(weight=1.0), lambda *_: Signal(value, "polite@3")
    with pytest.raises(ValueError, match=r"'polite' gave -?(nan|inf); allowed: -1 to 1"):
        reward_of(evidence_on(decision()), Rewarding({"polite": polite}), NOW)
