"""The direct method: what reward to expect of each judged answer, and of the candidate's own.

Doubly robust estimates add to it what importance weights say of its errors (`learner.off_policy`).
Shape suffixes: n answers, k first decisions, f features.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from contracts.settings import Settings
from learner import off_policy
from learner.buckets import TokenSequence
from learner.drawing import draw
from learner.experience import Experience
from learner.first_decision import Decisions, taken
from learner.off_policy import Floats, Foretold
from learner.policy import Policy
from learner.reward_model import RewardModel
from learner.scoring import sequence_of

PROMPT_BINS = 16
GOLDEN_RATIO = 2_654_435_761
"""2^32 divided by it: the upper bits of a product are spread evenly (Knuth, TAOCP 3, 6.4)."""

DRAWS = 4
"""Answers the candidate draws to a question for the reward model: with one alone, the noise of the
draw takes back what the model gains."""


def bin_of(token: int) -> int:
    """Return which of the bins a token is hashed into."""
    return (token * GOLDEN_RATIO % 2**32) * PROMPT_BINS // 2**32


def predict(
    usable: Sequence[Experience],
    decisions: Decisions,
    candidate_nk: Floats,
    slices_n: NDArray[np.int64],
    foretold: Foretold | None,
) -> tuple[Floats, Floats]:
    """Return (q of each answer, its mean under the candidate); see `off_policy.cross_fitted`.

    ``candidate_nk`` are the candidate's probabilities of each first decision. Features: the
    decision with the slice, and which tokens the prompt has, hashed into a few bins.
    """
    kinds = len(decisions.names)
    words_nf = np.zeros((len(usable), PROMPT_BINS))
    for place, experience in enumerate(usable):
        words_nf[place, [bin_of(token) for token in experience.prompt_ids]] = 1

    def features_of(decision_n: NDArray[np.int64]) -> Floats:
        crossed_nf = np.zeros((len(usable), kinds * kinds))
        crossed_nf[np.arange(len(usable)), decision_n * kinds + slices_n] = 1.0
        alone_nf = np.eye(kinds)[decision_n]
        return np.concatenate([alone_nf, crossed_nf, words_nf], axis=1)

    return off_policy.cross_fitted(
        features_of,
        np.array([taken(decisions, e.token_ids).place for e in usable]),
        candidate_nk,
        np.array([e.reward for e in usable]),
        [e.user_id for e in usable],
        foretold,
    )


def foretell(
    policy: Policy, usable: Sequence[Experience], settings: Settings, reward_model: RewardModel
) -> Foretold:
    """Have the reward model look at some questions: at the answer given, and at those that the
    candidate draws now, as long at most as the given one could be."""
    given_n, drawn_n = np.zeros(len(usable)), np.zeros(len(usable))
    asked = _asked(usable, settings.learner.drawn_answers // DRAWS)
    if asked:
        said_n = np.array(
            [one.mean for one in reward_model.score([sequence_of(usable[n]) for n in asked])]
        )
        drawn = _drawn(policy, [usable[n] for n in asked for _ in range(DRAWS)], settings)
        own_n = np.array([one.mean for one in reward_model.score(drawn)])
        # Around 0, which is what stands where it was not asked.
        given_n[asked] = said_n - said_n.mean()
        drawn_n[asked] = own_n.reshape(-1, DRAWS).mean(axis=1) - said_n.mean()
    return Foretold(given_n, drawn_n)


def _asked(usable: Sequence[Experience], most: int) -> list[int]:
    """Return the places of the questions asked, by the hash of their decisions.

    Not the newest: what is revised late stands among them, and of bad answers that are more. Where
    it was not logged how long the answer could be, no draw is like it.
    """
    known = [place for place, e in enumerate(usable) if e.max_tokens is not None]
    chosen = sorted(known, key=lambda n: sha256(usable[n].decision_id.encode()).digest())[:most]
    return sorted(chosen)


def _drawn(policy: Policy, given: Sequence[Experience], settings: Settings) -> list[TokenSequence]:
    """Return an answer that the policy draws now to each question, as long as it could be then."""
    found = [sequence_of(e) for e in given]
    for most in sorted({e.max_tokens or 1 for e in given}):
        places = [place for place, e in enumerate(given) if e.max_tokens == most]
        questions = [found[place] for place in places]
        room = settings.engine.max_model_len
        answers = draw(policy, questions, most, room, settings.learner.seed)
        for place, answer in zip(places, answers, strict=True):
            found[place] = TokenSequence(found[place].prompt_ids, answer)
    return found
