"""The transformers engine around a model that generates as long as somebody wants it to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import uvicorn

from console.local_broker import free_port
from contracts.events import Sampling
from contracts.settings import Settings
from serving.generation import Job, LocalModel
from serving.generation_queue import GenerationQueue
from serving.transformers_engine import TransformersEngine, make_app
from tests.until import until


class Endless(LocalModel):
    """Ends only when every job is cancelled."""

    def __init__(self) -> None:
        self.drawn = 0
        self.ended = 0

    def render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
    ) -> tuple[list[int], int]:
        return [1], 1_000_000

    def generate(self, model: str, jobs: Sequence[Job]) -> None:
        while not all(job.cancelled() for job in jobs):
            self.drawn += 1
            jobs[0].emit("a", 0, 0.0, None)
            time.sleep(0.001)
        self.ended += 1


def job() -> Job:
    return Job([1], Sampling(), lambda *_: None, lambda: False)


def test_generations_that_wait_are_counted_and_changes_of_adapters_are_not() -> None:
    queue = GenerationQueue(Endless())
    queue.generate("base", job())
    queue.call(lambda: None)
    queue.generate("one", job())
    assert queue.waiting() == 2


def test_a_plain_request_left_early_frees_the_engine(state_dir: Path) -> None:
    model, port = Endless(), free_port()
    app = make_app(TransformersEngine(model, 4), Settings(state_dir=state_dir))
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False)
    )
    thread = Thread(target=server.run)
    thread.start()
    try:
        until("the start", lambda: server.started)
        client = HTTPConnection("127.0.0.1", port)
        body = {"model": "base", "messages": [], "max_tokens": 1_000_000}
        client.request("POST", "/v1/chat/completions", msgspec.json.encode(body))
        until("the generation", lambda: model.drawn > 3)
        client.close()
        until("the end of the generation", lambda: model.ended == 1)
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
