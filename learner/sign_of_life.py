"""Says every minute that a process is there, from a thread of its own, whatever else it does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

from contracts.errors import HeadraceError

SIGN_OF_LIFE = 60.0
_log = logging.getLogger("learner")


class SignOfLife:
    """Calls ``say`` every so many seconds, but never during a `silence` or after the end.

    When ``say`` fails nobody hears it any more: it is not called again, and whoever speaks next
    meets the same fault.
    """

    def __init__(self, say: Callable[[], object], seconds: float) -> None:
        self._say = say
        self._seconds = seconds
        self._turn = Lock()
        self._over = Event()

    def begin(self) -> None:
        """Speak from now on."""
        Thread(target=self._run, name="sign of life", daemon=True).start()

    def end(self) -> None:
        """Speak no more; one that is being said may come after this, except within a `silence`."""
        self._over.set()

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Say nothing as long as the block runs."""
        with self._turn:
            yield

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            if not self._turn.acquire(blocking=False):
                continue
            try:
                if self._over.is_set():
                    return
                self._say()
            except (HeadraceError, OSError) as error:
                _log.warning("%s", error)
                return
            finally:
                self._turn.release()
