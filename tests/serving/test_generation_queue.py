"""The queue in front of the generating thread, without a model."""

from __future__ import annotations

from collections.abc import Sequence

from contracts.events import Sampling
from serving.generation import Job, LocalModel
from serving.generation_queue import GenerationQueue


class Endless(LocalModel):
    """Generates until every job is cancelled."""

    def __init__(self) -> None:
        return

    def generate(self, model: str, jobs: Sequence[Job]) -> None:
        while not all(job.cancelled() for job in jobs):
            jobs[0].emit("a", 0, 0.0, None)


def job() -> Job:
    return Job([1], Sampling(), lambda *_: None, lambda: False)


def test_generations_that_wait_are_counted_and_changes_of_adapters_are_not() -> None:
    queue = GenerationQueue(Endless())
    queue.generate("base", job())
    queue.call(lambda: None)
    queue.generate("one", job())
    assert queue.waiting() == 2
