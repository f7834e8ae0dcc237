"""The contextual bandit that `benchmarks.learning` compares the loop with; knows no torch.

It is what a team without a platform would write with scikit-learn: words and pairs of words
as features, one logistic regression per answer of whether it pleases, epsilon-greedy, fitted
again every `REFIT` interactions on the same labels and on the feedback that its own answers got.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from benchmarks.learning_questions import ESCALATE, Topics
from benchmarks.learning_recipes import EXPLORED
from contracts.events import Sample, text_of


class Told(Struct, frozen=True):
    """Whether an answer to a question pleased, and how much that counts."""

    text: str
    answer: str
    pleased: bool
    weight: float = 1.0


class Bandit:
    """Chooses among all answers by what it expects of each; `fit` it before the first answer."""

    def __init__(self, product: Topics, seed: int) -> None:
        self.answers = [*sorted(product.topics), ESCALATE]
        self._rng = random.Random(f"learning/bandit/{seed}")
        self._told = [
            Told(text, answer, pleased=answer == right)
            for text, right in product.labelled
            for answer in self.answers
        ]

    def take(self, sample: Sample, answer: str) -> None:
        """Remember what was said about one answer, and that it broke a rule."""
        text = text_of(sample.messages[-1])
        if sample.status != "censored":
            self.tell(Told(text, answer, sample.reward > 0.0, abs(sample.reward)))
        if sample.violation:
            self.tell(Told(text, answer, pleased=False))
            self.tell(Told(text, ESCALATE, pleased=True))
        if sample.correction is not None:
            self.tell(Told(text, text_of(sample.correction), pleased=True))

    def tell(self, told: Told) -> None:
        """Remember one judgement; `fit` learns from it."""
        self._told.append(told)

    def fit(self) -> None:
        """Fit everything again."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        texts = sorted({one.text for one in self._told})
        self._words: Any = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        matrix = self._words.fit_transform(texts)
        row_of = {text: row for row, text in enumerate(texts)}
        self._models: dict[str, Any] = {}
        for answer in self.answers:
            mine = [one for one in self._told if one.answer == answer]
            if len({one.pleased for one in mine}) == 2:
                model = LogisticRegression(C=10.0, solver="liblinear")
                rows = [row_of[one.text] for one in mine]
                weights = [one.weight for one in mine]
                model.fit(matrix[rows], [one.pleased for one in mine], sample_weight=weights)
                self._models[answer] = model

    def answer(self, texts: Sequence[str], *, explore: bool) -> list[str]:
        """Return the answer to each question."""
        rows = self._words.transform(texts)
        hopes = np.zeros((len(texts), len(self.answers)))
        for place, answer in enumerate(self.answers):
            if answer in self._models:
                hopes[:, place] = self._models[answer].predict_proba(rows)[:, 1]
        best = [self.answers[place] for place in hopes.argmax(axis=1)]
        if not explore:
            return best
        return [
            self._rng.choice(self.answers) if self._rng.random() < EXPLORED else one for one in best
        ]
