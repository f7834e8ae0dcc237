"""Drawn answers follow the distribution that the policy is scored by."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from contracts.settings import Settings
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.drawing import draw
from learner.policy import Policy

ROOM = 64


@pytest.fixture
def policy(settings: Settings) -> Policy:
    return load_policy(settings)


def test_tokens_come_as_often_as_the_policy_says(policy: Policy) -> None:
    """Of 4,000 draws of two tokens, each pair of first and second as likely as it is scored."""
    question = TokenSequence((10, 20, 30), (), 0.7)
    drawn = Counter(draw(policy, [question] * 4000, 2, ROOM, seed=1))
    often = [answer for answer, _ in drawn.most_common(20)]
    asked = [TokenSequence(question.prompt_ids, answer, 0.7) for answer in often]
    wanted_n = np.exp([sum(row) for row in policy.logprobs(asked, 512)])
    found_n = np.array([drawn[answer] / 4000 for answer in often])
    firsts = Counter(answer[0] for answer in drawn.elements())
    alone = [TokenSequence(question.prompt_ids, (token,), 0.7) for token in range(48)]
    first_n = np.exp([row[0] for row in policy.logprobs(alone, 512)])
    assert first_n.sum() == pytest.approx(1.0, abs=1e-4)
    errors_n = np.sqrt(first_n * (1.0 - first_n) / 4000)
    assert (np.abs([firsts[t] / 4000 for t in range(48)] - first_n) < 4.5 * errors_n).all()
    # The most frequent of many are picked for being so: allow for that.
    assert (np.abs(found_n - wanted_n) < 6.0 * np.sqrt(wanted_n / 4000)).all()


def test_an_answer_ends_with_its_turn_or_where_there_is_no_room(policy: Policy) -> None:
    questions = [TokenSequence(tuple(range(8, 8 + n % 5 + 2)), ()) for n in range(60)]
    drawn = draw(policy, questions, 30, 20, seed=2)
    for question, answer in zip(questions, drawn, strict=True):
        assert 1 <= len(answer) <= 20 - len(question.prompt_ids)
        assert 3 not in answer[:-1]
        assert answer[-1] == 3 or len(answer) == 20 - len(question.prompt_ids)
    assert any(answer[-1] == 3 for answer in drawn)
    assert max(map(len, draw(policy, questions, 4, 20, seed=2))) == 4


def test_equal_seeds_draw_equal_answers(policy: Policy) -> None:
    questions = [TokenSequence((9, 10, 11 + n % 3), (), 0.5 + n % 2) for n in range(12)]
    first = draw(policy, questions, 8, ROOM, seed=3)
    assert draw(policy, questions, 8, ROOM, seed=3) == first
    assert draw(policy, questions, 8, ROOM, seed=4) != first
