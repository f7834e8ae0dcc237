"""Where the policy broke a rule, it is told the safe answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from threading import Event

import msgspec
import pytest
import torch

from contracts.clock import ManualClock
from contracts.errors import SettingsError
from contracts.events import Message, Sample
from contracts.ids import NewId
from contracts.settings import Constraint, Settings
from contracts.settings.guard import DisallowedContent
from learner import checkpoint
from learner.adapters import load_policy
from learner.assistant_turn import correction_ids
from learner.buckets import TokenSequence
from learner.experience import Experience, experience_of
from learner.imputation import impute
from learner.ledger import WITHDRAWN
from learner.loop import run
from learner.progress import Beside, Progress, advance
from learner.safe_answer import check_safe_answer, corrected, safe_answer_ids
from learner.train_state import TrainState, new_train_state
from tests.learner.test_priced import PEOPLE

MakeSample = Callable[..., Sample]
SAFE = '<tool_call>{"name": "escalate", "arguments": {}}</tool_call>'
PRICE = Constraint(limit=0.1, multiplier=2.0, rate=1.0, safe_answer=SAFE)


@pytest.fixture
def priced(settings: Settings) -> Settings:
    return _with(settings, PRICE)


def _with(settings: Settings, constraint: Constraint) -> Settings:
    learner = msgspec.structs.replace(settings.learner, constraint=constraint)
    return msgspec.structs.replace(settings, learner=learner)


def _start(settings: Settings) -> tuple[TrainState, Progress]:
    train = new_train_state(load_policy(settings), settings.learner)
    return train, Progress(policy="assistant", base=train.policy.base)


def _experience(make_sample: MakeSample, number: int, **changes: object) -> Experience:
    who = {"user_id": PEOPLE[number], "correction": None}
    return experience_of(make_sample(number, **{**who, **changes}), offset=number)


def _silent(make_sample: MakeSample, number: int, **changes: object) -> Experience:
    said = {"id": f"silent-{number}", "status": "censored", "reward": 0.0}
    return _experience(make_sample, number, **{**said, **changes})


def _safe(train: TrainState, experience: Experience) -> float:
    """How likely the safe answer is to the prompt of an experience, as a log-probability."""
    asked = TokenSequence(experience.prompt_ids, train.safe_ids)
    return sum(train.policy.logprobs([asked], 4096)[0])


def test_violations_are_corrected_where_nobody_did_and_there_is_a_safe_answer(
    make_sample: MakeSample,
) -> None:
    harmless, broken = (_experience(make_sample, n, violation=n > 0) for n in range(2))
    told = msgspec.structs.replace(broken, correction_ids=(5, 3))
    bare = msgspec.structs.replace(broken, token_ids=())
    given = (harmless, broken, told, bare)
    found = corrected(given, (7, 3))
    assert [(e.decision_id, e.correction_ids) for e in found] == [
        (broken.decision_id, (7, 3)),
        (broken.decision_id, (5, 3)),
    ]
    assert corrected(given, ()) == (told,)


def test_without_a_constraint_there_is_no_safe_answer(priced: Settings) -> None:
    tokenizer = load_policy(priced).tokenizer
    wanted = correction_ids(tokenizer, Message(role="assistant", content=SAFE))
    assert safe_answer_ids(tokenizer, PRICE) == wanted != ()
    for other in (
        Constraint(),
        msgspec.structs.replace(PRICE, mode="off"),
        msgspec.structs.replace(PRICE, safe_answer=""),
    ):
        assert safe_answer_ids(tokenizer, other) == ()


@pytest.mark.parametrize("kind", ["rated", "silent"])
def test_the_policy_learns_to_say_it_and_is_told_again_later(
    priced: Settings, make_sample: MakeSample, kind: str
) -> None:
    rated = [_experience(make_sample, n) for n in range(8)]
    silent: list[Experience] = []
    if kind == "rated":
        rated[0] = broken = _experience(make_sample, 0, violation=True)
    else:
        silent = impute([_silent(make_sample, 20, violation=True)], None, priced)
        broken = silent[0]
    train, progress = _start(priced)
    before = _safe(train, broken)
    progress = advance(train, progress, rated, priced, Beside(silent=silent))
    assert _safe(train, broken) > before + 0.05
    assert progress.stats.corrections == 1
    [kept] = progress.replay.corrections
    assert kept.decision_id == broken.decision_id
    later = [_experience(make_sample, n) for n in range(40, 48)]
    assert advance(train, progress, later, priced).stats.corrections == 1


@pytest.mark.parametrize("withdrawn", [False, True])
def test_what_a_person_says_later_takes_its_place(
    priced: Settings, make_sample: MakeSample, withdrawn: bool
) -> None:
    """A correction is the only one from then on; a reward that is retracted leaves none."""
    rated = [_experience(make_sample, n, violation=n == 0) for n in range(8)]
    train, progress = _start(priced)
    progress = advance(train, progress, rated, priced)
    later = [_experience(make_sample, 10 + n) for n in range(8)]
    said = msgspec.structs.replace(rated[0], sample_id="later", offset=30, correction_ids=(9, 3))
    if withdrawn:
        progress = advance(train, progress, later, priced, Beside(superseded=[(said, WITHDRAWN)]))
        assert (progress.stats.corrections, progress.replay.corrections) == (0, ())
        return
    progress = advance(train, progress, [*later, said], priced)
    assert progress.stats.corrections == 1
    assert [e.correction_ids for e in progress.replay.corrections] == [(9, 3)]
    [line] = [o for o in progress.ledger if o.sample_id == "later"]
    assert (line.outcome, line.correction) == ("revised", "person")


def test_it_is_repeated_as_it_is_set_now_whatever_violations_cost(
    priced: Settings, make_sample: MakeSample
) -> None:
    rated = [_experience(make_sample, n, violation=n == 0) for n in range(8)]
    rated[1] = msgspec.structs.replace(rated[1], correction_ids=(9, 3))
    short = _with(priced, msgspec.structs.replace(PRICE, limit=0.9, margin=0.0, multiplier=0.8))
    train, progress = _start(short)
    progress = advance(train, progress, rated, short)
    assert progress.multiplier == pytest.approx(0.025)
    assert progress.stats.corrections == 2
    stats = []
    for first in (8, 16):
        later = [_experience(make_sample, first + n) for n in range(8)]
        progress = advance(train, progress, later, short)
        stats.append((progress.multiplier, progress.stats.corrections))
    assert stats == [(0.0, 2), (0.0, 2)]
    [broken] = [e for e in progress.replay.corrections if e.violation]
    assert broken.correction_ids == ()
    train.safe_ids = (7, 3)
    later = [_experience(make_sample, 30 + n) for n in range(8)]
    assert advance(train, progress, later, short).stats.corrections == 2
    train.safe_ids = ()
    assert advance(train, progress, later, short).stats.corrections == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("w1 w2", ""),
        (" w1\nw2", ""),
        ("w1 naïve w2", r"naïve.*safe_answer.*'w1 w2'.*knows"),
        (SAFE, r"escalate.*safe_answer.*tokenizer"),
        ("w1 " * 63, r"64 tokens - at.*safe_answer.*max_model_len \(64\)"),
        ("w4 w5", r"w4.*safe_answer.*breaks a rule.*disallowed-content/promises"),
    ],
)
def test_it_must_be_sayable_have_room_and_keep_the_rules(
    settings: Settings, answer: str, said: str
) -> None:
    content = (DisallowedContent(name="promises", terms=("w4 w5",)),)
    guard = msgspec.structs.replace(settings.guard, disallowed_content=content)
    given = _with(settings, msgspec.structs.replace(PRICE, safe_answer=answer))
    given = msgspec.structs.replace(given, guard=guard)
    policy = load_policy(given)
    with pytest.raises(SettingsError, match=said) if said else nullcontext():
        check_safe_answer(policy, given)
    off = _with(given, msgspec.structs.replace(PRICE, safe_answer=answer, mode="off"))
    check_safe_answer(policy, off)


def test_a_learner_does_not_begin_with_one_that_cannot_be_taught(
    priced: Settings, clock: ManualClock, new_id: NewId
) -> None:
    with pytest.raises(SettingsError, match=r"safe_answer.*tokenizer"):
        run(priced, clock, new_id, Event(), lambda _: [], process="learner")


@pytest.mark.parametrize("weights", [{}, {"correction_weight": 0.0, "preference_weight": 0.0}])
def test_the_ledger_says_whose_correction_is_in_the_weights(
    priced: Settings, make_sample: MakeSample, weights: dict[str, float]
) -> None:
    """Also where the answer taught nothing else: one that is stale, or priced at 0 by now."""
    constraint = msgspec.structs.replace(PRICE, limit=0.9, margin=0.0, multiplier=0.3)
    learner = msgspec.structs.replace(priced.learner, constraint=constraint, **weights)
    last = msgspec.structs.replace(priced, learner=learner)
    rated = [_experience(make_sample, n, violation=n in {0, 2}) for n in range(8)]
    rated[1] = msgspec.structs.replace(rated[1], correction_ids=(9, 3))
    rated[2] = msgspec.structs.replace(rated[2], behaviour_sequence=-99)
    silent = [_silent(make_sample, 20 + n, violation=n == 0) for n in range(2)]
    train, progress = _start(last)
    given = impute(silent, None, last)
    progress = advance(train, progress, rated, last, Beside(silent=given))
    assert progress.multiplier == 0.0
    found = {o.sample_id: (o.outcome, o.correction) for o in progress.ledger}
    told = [found[e.sample_id] for e in (*rated[:4], *silent)]
    if weights:
        assert [by for _, by in told] == [""] * 6
        assert (progress.priced, progress.unrewarded) == (0, 2)
        return
    assert told == [
        ("used", "safe-answer"),
        ("used", "person"),
        ("stale", "safe-answer"),
        ("used", ""),
        ("priced", "safe-answer"),
        ("no-reward", ""),
    ]
    assert (progress.priced, progress.unrewarded) == (1, 1)


def test_a_restart_goes_on_with_the_same_bits(priced: Settings, make_sample: MakeSample) -> None:
    def read(train: TrainState, progress: Progress, first: int) -> Progress:
        rated = [_experience(make_sample, first + n, violation=n == 0) for n in range(8)]
        said = [_silent(make_sample, first + 10 + n, violation=n == 1) for n in range(3)]
        return advance(train, progress, rated, priced, Beside(silent=impute(said, None, priced)))

    train, progress = _start(priced)
    progress = read(train, progress, 0)
    root = priced.state_dir / "checkpoints"
    checkpoint.save(root, train, progress, keep=1)
    again, _ = _start(priced)
    restored = checkpoint.restore(root, again)
    assert restored == progress
    ends = [read(*one, 30) for one in ((train, progress), (again, restored))]
    assert ends[0] == ends[1]
    assert ends[0].stats.corrections == 4
    found = checkpoint.tensors_of(again)
    assert all(torch.equal(tensor, found[n]) for n, tensor in checkpoint.tensors_of(train).items())
