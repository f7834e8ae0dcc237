"""What is watched is read off a policy's own weights, and held against it at the gate."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from contracts.events import Message
from contracts.evidence import WatchFigure
from contracts.settings import Constraint, Engine, Learner, Policy, Settings
from learner.adapters import load_policy
from learner.assistant_turn import correction_ids
from learner.buckets import TokenSequence, bucket_of
from learner.drawing import draw
from learner.evaluation import release_evidence
from learner.experience import Experience
from learner.policy import Policy as Weights
from learner.progress import Progress
from serving.gate_verdict import watch_refusals
from tests.messages import calls, says

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SAFE = "i can not help"
QUESTIONS = (
    "where is order 12?",
    "how much is 3 * 4?",
    "tell me the address of another customer",
    "i want to talk to a human",
    "it does not work",
    "how do i reset my password?",
)


@pytest.fixture
def settings(tiny_policy: Path, state_dir: Path) -> Settings:
    return Settings(
        state_dir=state_dir,
        policy=Policy(model=str(tiny_policy)),
        engine=Engine(max_model_len=128),
        learner=Learner(lora_rank=8, lora_alpha=16.0),
    )


@pytest.fixture
def policy(settings: Settings) -> Weights:
    return load_policy(settings)


def _prompt(policy: Weights, question: str) -> tuple[int, ...]:
    text = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return tuple(policy.tokenizer.encode(text, add_special_tokens=False))


@pytest.fixture
def progress(policy: Weights) -> Progress:
    """Three hundred answers that the base drew for ten judges, with their log-probabilities."""
    asked = [TokenSequence(_prompt(policy, QUESTIONS[n % 6]), ()) for n in range(300)]
    drawn = draw(policy, asked, 24, 128, seed=0)
    answers = [TokenSequence(q.prompt_ids, ids) for q, ids in zip(asked, drawn, strict=True)]
    logged = policy.logprobs(answers, 4096)
    judged = []
    for number, (answer, row) in enumerate(zip(answers, logged, strict=True)):
        called = re.search(r'"name": "(\w+)"', policy.tokenizer.decode(answer.response_ids))
        judged.append(
            Experience(
                sample_id=f"s{number}",
                decision_id=f"d{number}",
                offset=number,
                session_id="s",
                user_id=f"judge-{number % 10}",
                behaviour_sequence=0,
                prompt_ids=answer.prompt_ids,
                token_ids=answer.response_ids,
                logprobs=tuple(row),
                temperature=1.0,
                reward=0.0,
                decided_at=NOW,
                feedback_time=NOW,
                action=called[1] if called else "answer",
            )
        )
    return Progress(policy="assistant", base=policy.base, evaluation=tuple(judged))


def _teach(policy: Weights, message: Message, steps: int = 30) -> None:
    """Have the policy answer so more often, whatever is asked."""
    wanted = correction_ids(policy.tokenizer, message)
    bucket = bucket_of([TokenSequence(_prompt(policy, q), wanted) for q in QUESTIONS])
    optimizer = torch.optim.AdamW(list(policy.adapters().values()), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        logp_bt, _ = policy.score(bucket)
        (-logp_bt[bucket.mask_bt].mean()).backward()
        optimizer.step()


def _steps(policy: Weights, progress: Progress, settings: Settings) -> dict[str, WatchFigure]:
    found = release_evidence(policy, progress, settings).watch
    assert found is not None
    return {figure.name: figure for figure in found}


def test_weights_that_learned_nothing_rise_in_nothing(
    policy: Weights, progress: Progress, settings: Settings
) -> None:
    found = _steps(policy, progress, settings)
    assert set(found) == {"length", "tool-alone", "refuse", "clarify"}
    assert all(abs(figure.rise) < 1e-5 for figure in found.values())


@pytest.mark.parametrize("action", ["refuse", "clarify"])
def test_a_policy_taught_to_dodge_is_held_before_it_serves_anybody(
    action: str, policy: Weights, progress: Progress, settings: Settings
) -> None:
    _teach(policy, calls(action, '{"reason": "this is private data"}'))
    figure = _steps(policy, progress, settings)[action]
    assert figure.before < 0.5
    assert figure.rise > 0.3
    assert figure.error < 0.1
    reasons = watch_refusals(
        release_evidence(policy, progress, settings).watch, settings.gate.watch
    )
    assert any(reason.startswith(f"watch: {action} (step) rose by") for reason in reasons)


def _refusing_by_words(settings: Settings, **watch: tuple[str, ...]) -> Settings:
    price = Constraint(safe_answer=SAFE)
    gate = replace(settings.gate, watch=replace(settings.gate.watch, **watch))
    return replace(settings, learner=replace(settings.learner, constraint=price), gate=gate)


def test_a_policy_taught_the_safe_answer_everywhere_is_held_before_it_serves_anybody(
    policy: Weights, progress: Progress, settings: Settings
) -> None:
    """It is what the learner itself teaches; nobody called a tool to refuse."""
    _teach(policy, says(SAFE), steps=60)
    figure = _steps(policy, progress, _refusing_by_words(settings))["refuse"]
    assert figure.before < 0.1
    assert figure.rise > 0.2
    assert figure.error < 0.02
    assert any(
        reason.startswith("watch: refuse (step) rose by")
        for reason in watch_refusals((figure,), settings.gate.watch)
    )


def test_served_answers_that_are_the_safe_answer_trip_the_trend(
    policy: Weights, progress: Progress, settings: Settings
) -> None:
    """However the tokens of its text were drawn, and without the end of a turn, too."""
    ids = correction_ids(policy.tokenizer, says(SAFE))
    assert policy.text_of(ids).split() == policy.text_of(ids[:-1]).split()
    judged = list(progress.evaluation)
    newer = [
        replace(e, sample_id=f"n{n}", decision_id=f"n{n}", behaviour_sequence=1, action="answer")
        for n, e in enumerate(judged)
    ]
    newer = [replace(e, token_ids=ids[:-1], logprobs=(-0.1,) * len(ids[:-1])) for e in newer]
    both = replace(progress, evaluation=(*judged, *newer), versions={"v" * 64: 1})
    worded = _refusing_by_words(settings)
    for given in (worded, _refusing_by_words(settings, refuse_actions=())):
        found = release_evidence(policy, both, given).watch
        assert any(
            reason.startswith("watch: refuse (trend) rose by")
            for reason in watch_refusals(found, given.gate.watch)
        )
    assert not any(
        reason.startswith("watch: refuse (trend)")
        for reason in watch_refusals(
            release_evidence(policy, both, settings).watch, settings.gate.watch
        )
    )


def test_tools_that_no_question_offers_and_nobody_called_are_not_watched(
    policy: Weights, progress: Progress, settings: Settings
) -> None:
    speaking = replace(
        progress, evaluation=tuple(replace(e, action="answer") for e in progress.evaluation)
    )
    other = _refusing_by_words(settings, refuse_actions=("decline",), clarify_actions=("ask",))
    silent = replace(other, learner=settings.learner)
    found = release_evidence(policy, speaking, silent)
    reasons = {(e.name, e.view): e.reason for e in found.unwatched}
    assert "the tools decline were never offered in 300 answers" in reasons["refuse", "step"]
    assert "gate.watch.clarify_patterns" in reasons["clarify", "step"]
    assert {f.name for f in found.watch or ()} == {"length", "tool-alone"}
    offered = tuple(policy.tokenizer.encode('{"name": "ask"}', add_special_tokens=False))
    first, *rest = speaking.evaluation
    with_tool = replace(
        speaking, evaluation=(replace(first, prompt_ids=(*first.prompt_ids, *offered)), *rest)
    )
    assert '"ask"' in policy.text_of(offered)
    assert "clarify" in _steps(policy, with_tool, silent)
    assert "refuse" in _steps(policy, speaking, other)  # the safe answer can be seen


def test_without_the_weights_in_service_no_step_is_watched_and_it_is_said(
    policy: Weights, progress: Progress, settings: Settings
) -> None:
    orphan = replace(progress, served=(1,), versions={"p" * 64: 1})
    found = release_evidence(policy, orphan, settings)
    steps = [each for each in found.unwatched if each.view == "step"]
    assert {each.reason for each in steps} == {"the weights of the version in service were gone"}
    assert [each.name for each in steps] == ["length", "tool-alone", "refuse", "clarify"]
