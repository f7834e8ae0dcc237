"""Answers of a version drawn in this process, for benchmarks that need no engine of their own."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from contracts.events import Sampling
from serving.generation import Job, LocalModel


class Drawn(Struct):
    """An answer while it is drawn."""

    prompt_ids: list[int]
    sampling: Sampling = Sampling()
    text: str = ""
    token_ids: list[int] = []
    logprobs: list[float] = []

    def emit(self, text: str, token: int, logprob: float, _reason: str | None) -> None:
        """Take one more token."""
        self.text += text
        self.token_ids.append(token)
        self.logprobs.append(logprob)


def draw(
    model: LocalModel, version: str, asked: Sequence[tuple[str, Sampling]], rows: int
) -> list[Drawn]:
    """Return an answer to each question, ``rows`` of them at a time; no longer than there is room.

    EngineError for a question that leaves none.
    """
    drawn, jobs = [], []
    for text, sampling in asked:
        ids, room = model.render([{"role": "user", "content": text}], [])
        within = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        answer = Drawn(ids, within)
        jobs.append(Job(ids, within, answer.emit, lambda: False))
        drawn.append(answer)
    for first in range(0, len(jobs), rows):
        model.generate(version, jobs[first : first + rows])
    return drawn
