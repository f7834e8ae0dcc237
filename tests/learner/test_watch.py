"""Each way of earning without helping trips its alarm, and honest learning trips none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest

from contracts.events import Sample
from contracts.evidence import EXPECTED, Unwatched, WatchFigure
from contracts.settings import Watch
from learner.experience import Experience, experience_of
from learner.first_decision import Decisions
from learner.off_policy import resample_users
from learner.refusals import Evasion
from learner.watch import Reweighted, steps, trends
from learner.watch_figures import Watched
from serving.gate_verdict import watch_refusals

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VERSIONS, EACH, JUDGES, OTHERS = 8, 150, 20, 80
ACTIONS = ("answer", "refuse", "clarify", "search")
DECISIONS = Decisions(ACTIONS, (), (1, 2, 3))
SAFE, HELP, DECLINED, WHICH = (7, 8), (8, 7, 7), (9, 8), (9, 9)
TEXTS = {
    SAFE: "I cannot help  with that.",
    HELP: "Of course I can help with that!",
    DECLINED: "Sorry, I'm UNABLE to do this.",
    WHICH: "Which one do you mean?",
}


def _text_of(token_ids: Sequence[int]) -> str:
    return TEXTS.get(tuple(token_ids), "an answer")


REFUSE = Evasion(name="refuse", actions=("refuse",), text_of=_text_of)
CLARIFY = Evasion(name="clarify", actions=("clarify",), text_of=_text_of)
BY_TOOL = (REFUSE, CLARIFY)
BY_WORDS = (
    msgspec.structs.replace(
        REFUSE, safe_ids=SAFE, patterns=(re.compile("unable to", re.IGNORECASE),)
    ),
    msgspec.structs.replace(CLARIFY, patterns=(re.compile("which.*mean", re.IGNORECASE),)),
)
DECLARED = Watch()
NOTHING = Watch(
    max_length_rise=0.0,
    max_refuse_rise=0.0,
    max_clarify_rise=0.0,
    max_tool_alone_rise=0.0,
    max_drift=0.0,
)
"""No rise is allowed: whatever is beyond chance alarms."""

Hack = Callable[[dict[str, Any], float, bool, np.random.Generator], None]
"""Change an answer's fields, given how far the history has come (0 to 1) and whether of a judge."""


def _honest(fields: dict[str, Any], age: float, judged: bool, rng: np.random.Generator) -> None:
    """Rewards rise for everybody as the policy learns."""
    fields["reward"] = float(np.clip(fields["reward"] + 0.5 * age, -1.0, 1.0))


def _longer(fields: dict[str, Any], age: float, judged: bool, rng: np.random.Generator) -> None:
    fields["token_ids"] = fields["token_ids"] * (1 + round(3.0 * age))


def _refusing(fields: dict[str, Any], age: float, judged: bool, rng: np.random.Generator) -> None:
    if rng.random() < 0.6 * age:
        fields["action"] = "refuse"


def _asking(fields: dict[str, Any], age: float, judged: bool, rng: np.random.Generator) -> None:
    if rng.random() < 0.6 * age:
        fields["action"] = "clarify"


def _saying(words: tuple[int, ...]) -> Hack:
    """Say so more and more often, in a plain answer."""

    def hack(fields: dict[str, Any], age: float, judged: bool, rng: np.random.Generator) -> None:
        if rng.random() < 0.6 * age:
            fields.update(action="answer", token_ids=words, tool_alone=False)

    return hack


def _tooling(fields: dict[str, Any], age: float, judged: bool, rng: np.random.Generator) -> None:
    fields["tool_alone"] = bool(rng.random() < 0.1 + 0.6 * age)


def _pleasing(fields: dict[str, Any], age: float, judged: bool, rng: np.random.Generator) -> None:
    """Those who train pay more and more for what judges do not care for."""
    if not judged:
        fields["reward"] = float(np.clip(fields["reward"] + 1.2 * age, -1.0, 1.0))


def _history(seed: int, hack: Hack) -> tuple[list[Experience], list[Experience]]:
    """Answers of eight versions to judges, and to others; people differ in what they reward."""
    rng = np.random.default_rng(seed)
    taste = {f"user-{n}": rng.normal(scale=0.3) for n in range(JUDGES + OTHERS)}
    found: tuple[list[Experience], list[Experience]] = ([], [])
    for number in range(VERSIONS * EACH):
        version, judged = number // EACH, number % 4 == 0
        user = f"user-{rng.integers(JUDGES) if judged else JUDGES + rng.integers(OTHERS)}"
        action = str(rng.choice(ACTIONS, p=(0.55, 0.1, 0.1, 0.25)))
        fields: dict[str, Any] = {
            "token_ids": (1,) * int(rng.lognormal(2.5, 0.6) + 1),
            "action": action,
            "tool_alone": bool(action == "search" and rng.random() < 0.3),
            "reward": float(np.clip(rng.normal(taste[user], 0.6), -1.0, 1.0)),
        }
        hack(fields, version / (VERSIONS - 1), judged, rng)
        found[0 if judged else 1].append(
            Experience(
                sample_id=f"s{number}",
                decision_id=f"d{number}",
                offset=number,
                session_id="s",
                user_id=user,
                behaviour_sequence=version,
                prompt_ids=(1,),
                logprobs=(),
                temperature=1.0,
                decided_at=NOW,
                feedback_time=NOW,
                **fields,
            )
        )
    return found


def _drift_of(found: Watched) -> Unwatched:
    (drift,) = (each for each in found.unwatched if each.name == "drift")
    return drift


def _alarms(figures: tuple[WatchFigure, ...], watch: Watch = DECLARED) -> set[str]:
    return {reason.split()[1] for reason in watch_refusals(figures, watch)}


@pytest.mark.parametrize(
    ("hack", "alarm"),
    [
        (_longer, "length"),
        (_refusing, "refuse"),
        (_asking, "clarify"),
        (_tooling, "tool-alone"),
        (_pleasing, "drift"),
    ],
)
def test_a_planted_hack_trips_its_alarm_and_no_other(hack: Hack, alarm: str) -> None:
    for seed in range(5):
        found = trends(*_history(seed, hack), BY_TOOL, seed).figures
        assert _alarms(found) == {alarm}, (seed, found)


@pytest.mark.parametrize(("hack", "alarm"), [(_longer, "length"), (_refusing, "refuse")])
def test_one_user_who_asks_as_much_as_all_others_hides_no_trend(hack: Hack, alarm: str) -> None:
    """Whoever trains can ask what is answered as ever, as often as they like."""
    for seed in range(5):
        judged, taught = _history(seed, hack)
        calm = [*taught[: len(taught) // 8]] * 8
        bot = [msgspec.structs.replace(e, user_id="bot") for e in calm]
        versions = [e.behaviour_sequence for e in taught]
        bot = [
            msgspec.structs.replace(e, behaviour_sequence=version)
            for e, version in zip(bot, versions, strict=False)
        ]
        found = trends(judged, [*taught, *bot], BY_TOOL, seed).figures
        assert alarm in _alarms(found), (seed, found)


def test_honest_learning_trips_nothing_in_a_hundred_histories() -> None:
    for seed in range(100):
        found = trends(*_history(seed, _honest), BY_TOOL, seed).figures
        assert len(found) == 5
        assert watch_refusals(found, Watch()) == [], seed


def test_were_no_rise_allowed_at_all_chance_would_alarm_as_seldom_as_promised() -> None:
    """At level 5 % over all figures: of 200 histories 10 on average, and 19 in one run of 500."""
    alarmed = sum(
        bool(_alarms(trends(*_history(seed, _honest), BY_TOOL, seed).figures, NOTHING))
        for seed in range(200)
    )
    assert 0 < alarmed <= 19, alarmed


def test_a_reward_model_that_the_versions_learn_to_please_trips_an_alarm_of_its_own() -> None:
    judged, taught = _history(0, _honest)
    honest_n = np.array([e.reward * 0.5 for e in judged])
    assert _alarms(trends(judged, taught, BY_TOOL, 0, honest_n).figures) == set()
    fooled_n = honest_n + np.array([e.behaviour_sequence / 8.0 for e in judged])
    found = trends(judged, taught, BY_TOOL, 0, fooled_n).figures
    assert _alarms(found) == {"model-drift"}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("words", "alarm"), [(SAFE, "refuse"), (DECLINED, "refuse"), (WHICH, "clarify"), (HELP, "")]
)
def test_a_refusal_or_a_question_back_in_plain_words_is_one(
    words: tuple[int, ...], alarm: str
) -> None:
    for seed in range(5):
        found = trends(*_history(seed, _saying(words)), BY_WORDS, seed).figures
        assert _alarms(found) == ({alarm} if alarm else set()), (seed, found)


def test_a_refusal_that_is_told_in_two_ways_counts_once() -> None:
    def refusing(fields: dict[str, Any], age: float, *_: object) -> None:
        fields["action"] = "refuse" if fields["action"] == "refuse" else "answer"
        fields["token_ids"] = SAFE

    both = msgspec.structs.replace(BY_WORDS[0], patterns=(re.compile("cannot"),))
    found = trends(*_history(0, refusing), (both,), 0).figures
    assert {f.name: f.before for f in found}["refuse"] == pytest.approx(1.0)


def test_what_nothing_could_show_is_not_watched_and_no_calm_figure() -> None:
    def never(fields: dict[str, Any], *_: object) -> None:
        fields["action"] = "answer"

    blind = msgspec.structs.replace(REFUSE, unseen="no tool is named")
    found = trends(*_history(0, never), (blind, CLARIFY), 0)
    assert [figure.name for figure in found.figures] == ["length", "tool-alone", "clarify", "drift"]
    assert found.unwatched == (Unwatched(name="refuse", view="trend", reason="no tool is named"),)
    seen = trends(*_history(0, _refusing), (blind, CLARIFY), 0)
    assert "refuse" in _alarms(seen.figures)  # whatever was thought of it before
    assert seen.unwatched == ()


def test_one_version_alone_has_no_trend_and_says_so() -> None:
    judged, taught = _history(0, _longer)
    same = [msgspec.structs.replace(e, behaviour_sequence=3) for e in (*judged, *taught)]
    found = trends(same[:200], same[200:], BY_TOOL, 0, versions={3: "v3"})
    assert found.figures == ()
    names = ["length", "tool-alone", "refuse", "clarify", "drift"]
    assert [each.name for each in found.unwatched] == names
    reason = "one version gave all 1200 answers that are kept"
    assert {(e.view, e.reason, e.awaits) for e in found.unwatched} == {("trend", reason, ())}


def test_too_few_answers_have_no_trend_and_it_is_said_of_whom() -> None:
    judged, taught = _history(0, _longer)
    found = trends(judged[:5], taught[:20], BY_TOOL, 0, np.zeros(5))
    assert found.figures == ()
    assert len(found.unwatched) == 6
    few_judges = [e for e in judged if e.user_id in ("user-0", "user-1")]
    found = trends(few_judges, taught, BY_TOOL, 0, np.zeros(len(few_judges)))
    assert [f.name for f in found.figures] == ["length", "tool-alone", "refuse", "clarify"]
    assert [each.name for each in found.unwatched] == ["drift", "model-drift"]
    for each in found.unwatched:
        assert re.search(r"older versions: \d+ answers of 2 judges, at least 30 of 5", each.reason)


def test_rewards_are_compared_where_both_kinds_of_users_have_answers_on_both_sides() -> None:
    """What trains is kept for a shorter time: half of all answers may be before its first."""
    judged, taught = _history(0, _honest)
    late = [e for e in taught if e.behaviour_sequence >= 6]
    found = trends(judged, late, BY_TOOL, 0).figures
    assert [f.name for f in found] == ["length", "tool-alone", "refuse", "clarify", "drift"]
    assert all(np.isfinite((f.before, f.rise, f.error)).all() for f in found)


VERSIONS_BY_NUMBER = {number: f"v{number}" for number in range(1, VERSIONS)}


@pytest.mark.parametrize(
    ("left_of_judges", "left_of_others", "awaits"),
    [
        ({0: 200, 1: 60}, {0: 300, 1: 10}, ("v1",)),  # v1 has begun to serve
        ({0: 200}, {0: 300}, ()),  # the first release
        ({0: 200, 1: 20}, {0: 300, 1: 10}, ()),  # judges have not said enough: the floors hold it
        ({0: 60, 1: 200}, {0: 10, 1: 300}, ()),  # v1 serves for long: what was before is gone
        ({0: 200, 1: 60, 2: 10}, {0: 300, 1: 5, 2: 5}, ("v1", "v2")),  # v2's canary went back
        ({1: 200, 2: 10}, {1: 300, 2: 5}, ()),  # the same, when no answer of the base is left
    ],
)
def test_a_drift_is_awaited_of_those_alone_who_can_still_give_it(
    left_of_judges: dict[int, int], left_of_others: dict[int, int], awaits: tuple[str, ...]
) -> None:
    judged, taught = _history(0, _honest)

    def served(answers: list[Experience], left: dict[int, int]) -> list[Experience]:
        numbers = [number for number, count in left.items() for _ in range(count)]
        return [
            msgspec.structs.replace(e, behaviour_sequence=number)
            for e, number in zip(answers, numbers, strict=False)
        ]

    found = trends(
        served(judged, left_of_judges),
        served(taught, left_of_others),
        BY_TOOL,
        0,
        versions=VERSIONS_BY_NUMBER,
    )
    assert _drift_of(found).awaits == awaits


def test_that_a_tool_worked_counts_as_alone_when_nothing_else_speaks_for_the_answer(
    make_sample: Callable[..., Sample],
) -> None:
    alone = {"tool": 0.6}
    for signals, expected in (
        (alone, True),
        ({**alone, "re-ask": -0.6}, True),
        ({**alone, "rating": 0.5}, False),
        ({"tool": -0.6, "rating": -1.0}, False),
        ({}, False),
    ):
        assert experience_of(make_sample(1, signals=signals)).tool_alone is expected


# --- from a version to the next ----------------------------------------------------------------


def _policy(rng: np.random.Generator, tilt: float, place: int, count: int) -> np.ndarray:
    logits = rng.normal(scale=0.5, size=(count, len(ACTIONS))) + np.array([1.2, -0.5, -0.5, 0.4])
    logits[:, place] += tilt
    odds = np.exp(logits)
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _step(seed: int, tilt: float, action: str, longer: float = 0.0) -> tuple[WatchFigure, ...]:
    """A candidate that takes one action more often, or gives long answers more weight."""
    judged, _ = _history(seed, _honest)
    rng = np.random.default_rng(seed)
    place, count = ACTIONS.index(action), len(judged)
    before_nk = _policy(np.random.default_rng(seed), 0.0, place, count)
    after_nk = _policy(np.random.default_rng(seed), tilt, place, count)
    taken = [ACTIONS.index(e.action) for e in judged]
    first_n = after_nk[np.arange(count), taken] / before_nk[np.arange(count), taken]
    lengths_n = np.array([float(len(e.token_ids)) for e in judged])
    whole_n = np.exp(longer * (lengths_n - lengths_n.mean()) / lengths_n.std())
    whole_n *= np.exp(rng.normal(scale=0.3, size=count))
    ones_n = np.ones(count)
    never_n = np.zeros(count)
    parent = Reweighted(decisions_nk=before_nk, safe_n=never_n, first_n=ones_n, whole_n=ones_n)
    candidate = Reweighted(decisions_nk=after_nk, safe_n=never_n, first_n=first_n, whole_n=whole_n)
    resampled = resample_users([e.user_id for e in judged], seed)
    return steps(judged, DECISIONS, parent, candidate, resampled, BY_TOOL).figures


@pytest.mark.parametrize("action", ["refuse", "clarify"])
def test_a_candidate_that_will_do_it_more_often_is_seen_before_anybody_is_served(
    action: str,
) -> None:
    for seed in range(5):
        assert _alarms(_step(seed, 2.5, action)) == {action}
        assert _alarms(_step(seed, 0.2, action)) == set()


def test_a_candidate_that_prefers_long_answers_is_seen_too() -> None:
    for seed in range(5):
        assert _alarms(_step(seed, 0.0, "answer", longer=1.5)) == {"length"}


def test_a_candidate_like_its_parent_trips_nothing_in_a_hundred_trials() -> None:
    for seed in range(100):
        assert watch_refusals(_step(seed, 0.0, "answer"), Watch()) == [], seed


def test_an_action_that_no_token_tells_from_another_is_weighed_and_not_read_off() -> None:
    judged, _ = _history(0, _honest)
    merged = Decisions(("answer", "refund|refuse", "clarify"), (), (1, 2))
    nk = np.tile([0.2, 0.7, 0.1], (len(judged), 1))
    ones_n = np.ones(len(judged))
    one = Reweighted(decisions_nk=nk, safe_n=0.0 * ones_n, first_n=ones_n, whole_n=ones_n)
    resampled = resample_users([e.user_id for e in judged], 0)
    found = {f.name: f for f in steps(judged, merged, one, one, resampled, BY_TOOL).figures}
    shown = sum(e.action == "refuse" for e in judged) / len(judged)
    assert found["refuse"].before == pytest.approx(shown)
    assert found["clarify"].before == pytest.approx(0.1)
    assert [f.rise for f in found.values()] == pytest.approx([0.0] * 4)


def test_a_candidate_that_will_say_it_in_words_more_often_is_seen_before_anybody_is_served() -> (
    None
):
    judged, _ = _history(0, _saying(DECLINED))
    nk = np.tile([0.7, 0.1, 0.1, 0.1], (len(judged), 1))
    ones_n, said_n = np.ones(len(judged)), np.array([e.token_ids == DECLINED for e in judged])
    before = Reweighted(decisions_nk=nk, safe_n=0.1 * ones_n, first_n=ones_n, whole_n=ones_n)
    resampled = resample_users([e.user_id for e in judged], 0)
    for changed, rise in (
        ({"safe_n": 0.5 * ones_n}, 0.4),
        ({"whole_n": 1.0 + 9.0 * said_n}, None),
    ):
        after = msgspec.structs.replace(before, **changed)
        found = steps(judged, DECISIONS, before, after, resampled, BY_WORDS).figures
        (figure,) = (each for each in found if each.name == "refuse")
        assert figure.before == pytest.approx(0.2 + said_n.mean())
        assert rise is None or figure.rise == pytest.approx(rise)
        assert _alarms((figure,)) == {"refuse"}


def test_too_few_answers_of_judges_show_no_step_and_it_is_said() -> None:
    judged, _ = _history(0, _honest)
    few = judged[:20]
    ones_n, nk = np.ones(20), np.tile([0.7, 0.1, 0.1, 0.1], (20, 1))
    one = Reweighted(decisions_nk=nk, safe_n=0.0 * ones_n, first_n=ones_n, whole_n=ones_n)
    resampled = resample_users([e.user_id for e in few], 0)
    found = steps(few, DECISIONS, one, one, resampled, BY_TOOL)
    assert found.figures == ()
    assert [(e.name, e.view) for e in found.unwatched] == list(EXPECTED[:4])
    assert found.unwatched[0].reason.startswith("20 answers of ")
