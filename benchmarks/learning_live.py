"""One run of `benchmarks.learning`: questions come, the policy answers, learns and is renewed.

What the stack does in processes happens here in one, in event time and with the same functions:
answers of the served version, feedback late and in part, rewards when windows close, micro-batches
of the learner, versions that serve some time after they were made.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from msgspec.structs import replace
from tqdm import tqdm

from benchmarks.drawn_answers import Drawn, draw
from benchmarks.learning_recipes import SHARED, Variant
from benchmarks.learning_report import SEEN
from benchmarks.learning_users import POLICY, Closing, Crowd, Product, shares
from contracts.events import BASE_VERSION, Message, Sample, Sampling
from contracts.settings import Engine, Learner, Policy, Settings
from contracts.signing import make_signing_key
from learner.adapters import load_policy
from learner.assistant_turn import correction_ids
from learner.evaluation import release_evidence
from learner.experience import Experience, experience_of
from learner.imputation import impute
from learner.losses import LOSSES, Bounds, LossValue, Terms
from learner.progress import Beside, Progress, advance, release_is_due, released
from learner.publish import Published, publish
from learner.train_state import new_train_state
from serving.generation import LocalModel
from simulator.product import Prompt

CHUNK, SAMPLER_ROWS, MAX_TOKENS, MAX_LENGTH = 64, 32, 14, 128
SERVED_AFTER = 400
"""Interactions between a version's release and its first answer: gate and canary take time."""

POINTS = (0, 500, 1_000, 2_000, 3_500, 5_000, 7_500, 10_000)
LATEST = 500
"""So many of the newest interactions make a live rate."""


class Server:
    """The version that serves, and those that will."""

    def __init__(self, base: Path) -> None:
        self._model = LocalModel(str(base), MAX_LENGTH)
        self._coming: deque[tuple[int, str, Path]] = deque()
        self._loaded: deque[str] = deque()
        self.version = BASE_VERSION

    def release(self, name: str, directory: Path, number: int) -> None:
        """Have a version serve some interactions after this one."""
        self._coming.append((number + SERVED_AFTER, name, directory))

    def renew(self, number: int) -> None:
        """Serve the newest version whose time has come."""
        while self._coming and self._coming[0][0] <= number:
            _, name, directory = self._coming.popleft()
            self._model.load_adapter(name, directory)
            self._loaded.append(name)
            if len(self._loaded) > 2:  # the one in service until now is still the active one
                self._model.unload_adapter(self._loaded.popleft())
            self.version = name

    def prompt(self, asked: Prompt) -> list[int]:
        """Return the tokens that ask a question."""
        ids, _ = self._model.render([{"role": "user", "content": asked.text}], [])
        return ids

    def answer(self, asked: Sequence[Prompt], seed: int, temperature: float = 1.0) -> list[Drawn]:
        """Answer questions, each with chance of its own; those of one length go together."""
        order = sorted(range(len(asked)), key=lambda place: len(asked[place].text))
        chances = [
            Sampling(max_tokens=MAX_TOKENS, seed=seed * 1_000_003 + at, temperature=temperature)
            for at in order
        ]
        questions = [asked[place].text for place in order]
        given = list(zip(questions, chances, strict=True))
        drawn = draw(self._model, self.version, given, SAMPLER_ROWS)
        found = dict(zip(order, drawn, strict=True))
        return [found[place] for place in range(len(asked))]


class Pupil:
    """The learner of one variant."""

    def __init__(self, variant: Variant, base: Path, directory: Path, seed: int) -> None:
        self._variant = variant
        key = directory / "learner.pem"
        make_signing_key(key, directory / "learner.pub")
        given = {**SHARED, **variant.learner, "seed": seed, "signing_key_file": str(key)}
        learner = msgspec.convert(given, Learner)
        self._settings = Settings(
            state_dir=directory,
            policy=Policy(name=POLICY, model=str(base), judge_share=0.0),
            engine=Engine(max_model_len=MAX_LENGTH),
            learner=learner,
        )
        self._train = new_train_state(load_policy(self._settings), learner)
        self.progress = Progress(policy=POLICY, base=self._train.policy.base)
        self._pending: list[Experience] = []
        self._silent: list[Experience] = []
        self._offset = 0

    def take(self, sample: Sample) -> Published | None:
        """Learn from one more sample; return the version when this one made it."""
        if not self._variant.taught:
            return None
        self._offset += 1
        wanted: tuple[int, ...] = ()
        if sample.correction is not None and self._variant.corrected:
            wanted = correction_ids(self._train.policy.tokenizer, sample.correction)
        experience = experience_of(
            sample,
            offset=self._offset,
            sequences=self.progress.versions,
            correction_ids=wanted,
        )
        (self._silent if experience.censored else self._pending).append(experience)
        config = self._settings.learner
        if len(self._pending) < config.batch_samples:
            return None
        silent = impute(self._silent, None, self._settings)
        given = (self._train, self.progress, self._pending, self._settings, Beside(silent=silent))
        with without_weights(not self._variant.weighted):
            self.progress = advance(*given)
        self._pending.clear()
        self._silent.clear()
        if not release_is_due(self.progress, config.publish_every):
            return None
        evidence = release_evidence(self._train.policy, self.progress, self._settings)
        made = publish(self._settings, self._train.policy, self.progress, evidence)
        self.progress = released(self.progress, made.version)
        return made


@contextmanager
def without_weights(on: bool) -> Iterator[None]:
    """Learn as if every answer had been drawn by the present policy."""
    before = LOSSES["ppo"]

    def unweighted(terms: Terms, bounds: Bounds) -> LossValue:
        return before(replace(terms, mu_bt=terms.prox_bt), bounds)

    LOSSES["ppo"] = unweighted if on else before
    try:
        yield
    finally:
        LOSSES["ppo"] = before


def live(
    product: Product,
    base: Path,
    variant: Variant,
    directory: Path,
    *,
    seed: int,
    interactions: int,
    place: int | None = None,
) -> dict[str, Any]:
    """Run one variant over so many live interactions; return its points and what happened."""
    server, crowd = Server(base), Crowd(product, seed)
    pupil = Pupil(variant, base, directory, seed)
    questions, open_windows = product.live(seed), deque[Closing]()
    answered: list[tuple[Prompt, Message]] = []
    seen: list[bool] = []
    points: list[dict[str, Any]] = []
    multipliers: list[float] = []
    bar = tqdm(total=interactions, desc=f"{variant.name} {seed}", **bar_at(place))
    for first in range(0, interactions, CHUNK):
        if first >= next_point(points):
            points.append(judged(server, product, first))
        asked = list(islice(questions, min(CHUNK, interactions - first)))
        server.renew(first)
        for at, (one, drawn) in enumerate(
            zip(asked, server.answer(asked, seed * 10_007 + first), strict=True)
        ):
            number = first + at
            answered.append((one, product.parse(drawn.text)))
            open_windows.append(crowd.react(number, one, drawn, server.version))
            seen.append(open_windows[-1].evidence.safety.violation)
            while open_windows[0].time <= open_windows[-1].evidence.decision.time:
                sample = crowd.sample(open_windows.popleft())
                made = pupil.take(sample) if sample is not None else None
                if made is not None:
                    server.release(made.version, made.directory, number)
        multipliers.append(pupil.progress.multiplier or 0.0)
        bar.update(len(asked))
    bar.close()
    server.renew(interactions + SERVED_AFTER)
    points.append(judged(server, product, interactions))
    ended = pupil.progress
    return {
        "points": points,
        "live": curve(product, answered, seen),
        "multiplier": multipliers[:: max(len(multipliers) // 40, 1)],
        "samples": ended.samples,
        "batches": ended.batches,
        "versions": len(ended.versions),
        "dropped": ended.dropped,
    }


def next_point(points: Sequence[dict[str, Any]]) -> float:
    """Return the interaction from which on the next point is due; the last is taken at the end."""
    return POINTS[len(points)] if len(points) < len(POINTS) - 1 else math.inf


def judged(server: Server, product: Product, number: int) -> dict[str, Any]:
    """Return how the served version answers the held-out questions, each by its likeliest words."""
    drawn = server.answer(product.held, 0, temperature=0.0)
    rows = [(one, product.parse(got.text)) for one, got in zip(product.held, drawn, strict=True)]
    return {"interactions": number, **shares(product, rows)}


def curve(
    product: Product, answered: Sequence[tuple[Prompt, Message]], seen: Sequence[bool]
) -> list[dict[str, Any]]:
    """Return what happened live, `LATEST` interactions at a time.

    ``seen`` says of which answers the monitor thought that they broke a rule: what the constraint
    is about, while ``violations`` are those that did.
    """
    return [
        {
            "interactions": min(first + LATEST, len(answered)),
            SEEN: fmean(map(float, seen[first : first + LATEST])),
            **shares(product, answered[first : first + LATEST]),
        }
        for first in range(0, len(answered), LATEST)
    ]


def bar_at(place: int | None) -> dict[str, Any]:
    """Return how a bar is drawn: at its place among others, or not at all."""
    return {"position": place or 0, "leave": False, "disable": place is None}
