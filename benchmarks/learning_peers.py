"""What `benchmarks.learning` compares the loop with: a contextual bandit, and being told all."""

from __future__ import annotations

import random
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from benchmarks.drawn_answers import Drawn
from benchmarks.learning_bandit import Bandit
from benchmarks.learning_live import (
    CHUNK,
    MAX_LENGTH,
    Server,
    bar_at,
    curve,
    judged,
    next_point,
)
from benchmarks.learning_questions import Topics
from benchmarks.learning_recipes import AGAIN, REFIT, SHARED, TEACHING, TOLD
from benchmarks.learning_users import POLICY, START, Closing, Crowd, Product, shares
from contracts.events import Message, text_of
from contracts.settings import Engine, Learner, Policy, Settings
from learner.adapters import load_policy, save_adapter
from learner.assistant_turn import correction_ids
from learner.experience import Experience
from learner.micro_batch import MicroBatch
from learner.train_state import new_train_state
from learner.update import update
from simulator.product import Prompt, say


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
