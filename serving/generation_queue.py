"""The bounded queue between an engine's event loop and its one generating thread."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any, TypeVar

from msgspec import Struct

from contracts.errors import EngineError
from serving.generation import Job, LocalModel

MAX_WAITING = 256
MAX_BATCH = 8
STOP_SECONDS = 10.0

Result = TypeVar("Result")
log = logging.getLogger("headrace.engine")


class _Generation(Struct):
    model: str
    job: Job
    done: Future[None]


class _Call(Struct):
    function: Callable[[], Any]
    done: Future[Any]


class GenerationQueue:
    """Runs generations and changes of adapters one after the other, in order of arrival.

    Generations for one model that wait next to each other, with no change of adapters between
    them, form a batch.
    """

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._waiting: deque[_Generation | _Call] = deque()
        self._changed = Condition()
        self._stopping = False
        self._paused = False
        self._thread = Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is being generated, drop what waits, end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(STOP_SECONDS)

    def waiting(self) -> int:
        """Return how many generations wait for their turn."""
        with self._changed:
            return sum(isinstance(item, _Generation) for item in self._waiting)

    def generate(self, model: str, job: Job) -> Future[None]:
        """Queue a job; the future ends after its last emit. EngineError 503 when full."""
        done: Future[None] = Future()
        self._put(_Generation(model, job, done))
        return done

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Queue a call that touches the model; EngineError 503 when full."""
        done: Future[Result] = Future()
        self._put(_Call(function, done))
        return done

    def pause(self) -> Future[None]:
        """Begin no generation until `resume`; the future ends when none runs any more."""
        with self._changed:
            self._paused = True
        return self.call(lambda: None)

    def resume(self) -> None:
        """Generate again."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def _put(self, item: _Generation | _Call) -> None:
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                raise EngineError(f"{MAX_WAITING} requests are waiting; try again later", 503)
            self._waiting.append(item)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._can_go_on())
                if self._stopping:
                    return
                items = self._next()
            try:
                result = self._do(items)
            except Exception as error:  # edge of the thread: the asker gets the error
                if not isinstance(error, EngineError):
                    log.exception("generation failed")
                for item in items:
                    item.done.set_exception(error)
            else:
                for item in items:
                    item.done.set_result(result)

    def _can_go_on(self) -> bool:
        if self._paused:
            return any(isinstance(item, _Call) for item in self._waiting)
        return bool(self._waiting)

    def _next(self) -> list[_Generation | _Call]:
        """Take the first item, and all of its batch; while paused the first call."""
        if self._paused:
            call = next(item for item in self._waiting if isinstance(item, _Call))
            self._waiting.remove(call)
            return [call]
        first = self._waiting.popleft()
        batch: list[_Generation | _Call] = [first]
        if isinstance(first, _Call):
            return batch
        passed: list[_Generation | _Call] = []
        while self._waiting and len(batch) < MAX_BATCH:
            item = self._waiting.popleft()
            if isinstance(item, _Generation) and item.model == first.model:
                batch.append(item)
                continue
            passed.append(item)
            if isinstance(item, _Call):
                break
        self._waiting.extendleft(reversed(passed))
        return batch

    def _do(self, items: list[_Generation | _Call]) -> Any:
        first = items[0]
        if isinstance(first, _Call):
            return first.function()
        jobs = [item.job for item in items if isinstance(item, _Generation)]
        return self._model.generate(first.model, jobs)
