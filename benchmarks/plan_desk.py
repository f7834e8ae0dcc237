"""A small policy between two answers, for `benchmarks.poison` and `benchmarks.freshness`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks.drawn_answers import Drawn, draw
from contracts.events import BASE_VERSION, Sampling
from contracts.settings import Engine, Learner, Policy, Settings
from contracts.signing import make_signing_key
from learner.experience import Experience
from learner.warm_start import Demonstration, Recipe, make_policy
from serving.generation import LocalModel

GOOD, BAD = "the small plan", "the large plan"
QUESTIONS = tuple(
    f"which plan fits {who}" for who in ("me", "us", "a family", "a shop", "one phone", "my team")
)
START = datetime(2026, 1, 1, tzinfo=UTC)
PROBES = 256
_RECIPE = Recipe(hidden=64, layers=2, intermediate=128, vocabulary=400, threads=1)


class Answered(Struct, frozen=True):
    """An answer as the learner knows it, its reward still open, with question and text."""

    experience: Experience
    question: str
    text: str


def plan_settings(base: Path, directory: Path, seed: int) -> Settings:
    """Return the settings of a learner whose state and key lie in ``directory``."""
    key = directory / "learner.pem"
    make_signing_key(key, directory / "learner.pub")
    return Settings(
        state_dir=directory,
        policy=Policy(name="plans", model=str(base)),
        engine=Engine(max_model_len=64),
        learner=Learner(seed=seed, signing_key_file=str(key), keep_checkpoints=1),
    )


def _question(number: int) -> str:
    return QUESTIONS[number % len(QUESTIONS)]


class Desk:
    """Answers questions with the version that serves."""

    def __init__(self, settings: Settings) -> None:
        self._model = LocalModel(settings.policy.model, settings.engine.max_model_len)
        self.version = BASE_VERSION
        self._sequence = 0

    @staticmethod
    def make_base(directory: Path) -> Path:
        """Make the policy: it says each answer about half the time."""
        demonstrations = [
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            }
            for question in QUESTIONS
            for answer in (GOOD, BAD)
        ] * 64
        return make_policy(
            msgspec.convert(demonstrations, list[Demonstration]),
            directory,
            seed=0,
            steps=200,
            recipe=_RECIPE,
            progress=False,
        )

    def serve(self, version: str, directory: Path, sequence: int) -> None:
        """Answer with this version from now on."""
        self._model.load_adapter(version, directory)
        self.version, self._sequence = version, sequence

    def answer(self, users: Sequence[str], number: int) -> list[Answered]:
        """Answer one question of each user; ``number`` is that of the first of them."""
        found = []
        for place, drawn in enumerate(self._draw(len(users), number)):
            at = START + timedelta(seconds=number + place)
            experience = Experience(
                sample_id=f"s{number + place}",
                decision_id=f"d{number + place}",
                offset=number + place,
                session_id=f"session-{number + place}",
                user_id=users[place],
                behaviour_sequence=self._sequence,
                prompt_ids=tuple(drawn.prompt_ids),
                token_ids=tuple(drawn.token_ids),
                logprobs=tuple(drawn.logprobs),
                temperature=1.0,
                reward=0.0,
                decided_at=at,
                feedback_time=at,
                action="answer",
            )
            found.append(Answered(experience, _question(number + place), drawn.text.strip()))
        return found

    def preference(self) -> float:
        """Return how often the good answer comes, of it and the bad one, over fresh draws."""
        texts = [drawn.text.strip() for drawn in self._draw(PROBES, 10_000_000)]
        good, bad = texts.count(GOOD), texts.count(BAD)
        return good / (good + bad) if good + bad else math.nan

    def _draw(self, count: int, number: int) -> list[Drawn]:
        asked = [
            (_question(at), Sampling(max_tokens=12, seed=at))
            for at in range(number, number + count)
        ]
        return draw(self._model, self.version, asked, rows=64)
