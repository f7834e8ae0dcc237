"""What `benchmarks.learning` compares the loop with: a contextual bandit, and being told all.

The bandit is what a team without a platform would write with scikit-learn: words and pairs of words
as features, one logistic regression per answer of whether it pleases, epsilon-greedy, fitted
again every `REFIT` interactions on the same labels and on the feedback that its own answers got.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from tqdm import tqdm

from benchmarks.drawn_answers import Drawn
from benchmarks.learning_live import (
    CHUNK,
    MAX_LENGTH,
    Server,
    bar_at,
    curve,
    judged,
    next_point,
)
from benchmarks.learning_questions import ESCALATE, Topics
from benchmarks.learning_recipes import AGAIN, EXPLORED, REFIT, SHARED, TEACHING, TOLD
from benchmarks.learning_users import POLICY, START, Closing, Crowd, Product, shares
from contracts.events import Message, Sample, text_of
from contracts.settings import Engine, Learner, Policy, Settings
from learner.adapters import load_policy, save_adapter
from learner.assistant_turn import correction_ids
from learner.experience import Experience
from learner.micro_batch import MicroBatch
from learner.train_state import new_train_state
from learner.update import update
from simulator.product import Prompt, say


class Told(Struct, frozen=True):
    """Whether an answer to a question pleased, and how much that counts."""

    text: str
    answer: str
    pleased: bool
    weight: float = 1.0


class Bandit:
    """Chooses among all answers by what it expects of each."""

    def __init__(self, product: Topics, seed: int) -> None:
        self.answers = [*sorted(product.topics), ESCALATE]
        self._rng = random.Random(f"learning/bandit/{seed}")
        self._told = [
            Told(text, answer, pleased=answer == right)
            for text, right in product.labelled
            for answer in self.answers
        ]
        self.fit()

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


def bandit(
    product: Topics, *, seed: int, interactions: int, place: int | None = None
) -> dict[str, Any]:
    """Run the bandit over so many live interactions; return its points and what happened."""
    crowd, chooser = Crowd(product, seed), Bandit(product, seed)
    questions, open_windows = product.live(seed), deque[Closing]()
    answered: list[tuple[Prompt, Message]] = []
    seen: list[bool] = []
    points: list[dict[str, Any]] = []
    bar = tqdm(total=interactions, desc=f"bandit {seed}", **bar_at(place))
    for first in range(0, interactions, REFIT):
        chooser.fit()
        if first >= next_point(points):
            points.append({"interactions": first, **_held(chooser, product)})
        asked = list(islice(questions, min(REFIT, interactions - first)))
        texts = [one.text for one in asked]
        for one, answer in zip(asked, chooser.answer(texts, explore=True), strict=True):
            drawn = Drawn([0], text=answer, token_ids=[0], logprobs=[0.0])
            open_windows.append(crowd.react(len(answered), one, drawn, "bandit"))
            answered.append((one, say(answer)))
            seen.append(open_windows[-1].evidence.safety.violation)
            while open_windows[0].time <= open_windows[-1].evidence.decision.time:
                closing = open_windows.popleft()
                sample = crowd.sample(closing)
                if sample is not None:
                    chooser.take(sample, text_of(closing.evidence.decision.answer))
        bar.update(len(asked))
    bar.close()
    chooser.fit()
    points.append({"interactions": interactions, **_held(chooser, product)})
    return {"points": points, "live": curve(product, answered, seen)}


def _held(chooser: Bandit, product: Topics) -> dict[str, float]:
    answers = chooser.answer([one.text for one in product.held], explore=False)
    rows = [(one, say(answer)) for one, answer in zip(product.held, answers, strict=True)]
    return shares(product, rows)


def skyline(
    product: Product,
    base: Path,
    directory: Path,
    *,
    seed: int,
    interactions: int,
    place: int | None = None,
) -> dict[str, Any]:
    """Tell the same base the right answers to as many live questions as the loop hears of.

    Each is imitated with its batch, and with `AGAIN` later ones. Return the points.
    """
    learner = msgspec.convert({**SHARED, **TEACHING, "seed": seed}, Learner)
    settings = Settings(
        state_dir=directory,
        policy=Policy(name=POLICY, model=str(base)),
        engine=Engine(max_model_len=MAX_LENGTH),
        learner=learner,
    )
    train, server = new_train_state(load_policy(settings), learner), Server(base)
    rng, questions = random.Random(f"learning/skyline/{seed}"), product.live(seed)
    seen: list[Experience] = []
    points: list[dict[str, Any]] = []
    bar = tqdm(total=interactions, desc=f"skyline {seed}", **bar_at(place))
    for first in range(0, interactions, CHUNK):
        if first >= next_point(points):
            points.append(judged(server, product, first))
        asked = list(islice(questions, min(CHUNK, interactions - first)))
        told_of = [one for one in asked if rng.random() < TOLD]
        fresh = [_lesson(server, train.policy.tokenizer, one) for one in told_of]
        again = rng.sample(seen, min(AGAIN * len(fresh), len(seen)))
        update(train, MicroBatch(fresh=(), corrections=(*fresh, *again)), learner, MAX_LENGTH)
        seen += fresh
        if first + CHUNK >= next_point(points) or first + CHUNK >= interactions:
            made = directory / f"v{first}"
            made.mkdir()
            save_adapter(train.policy, made)
            server.release(made.name, made, first)
            server.renew(first + interactions)
        bar.update(len(asked))
    bar.close()
    points.append(judged(server, product, interactions))
    return {"points": points}


def _lesson(server: Server, tokenizer: Any, prompt: Prompt) -> Experience:
    return Experience(
        sample_id=prompt.text,
        decision_id=prompt.text,
        offset=0,
        session_id="",
        user_id="teacher",
        behaviour_sequence=0,
        prompt_ids=tuple(server.prompt(prompt)),
        token_ids=(),
        logprobs=(),
        temperature=1.0,
        reward=0.0,
        decided_at=START,
        feedback_time=START,
        correction_ids=correction_ids(tokenizer, prompt.right),
    )
