"""The contestants' side of the learner's benchmark: one update at every word from standard input.

Standard library only, since the peer runs in an environment without Headrace.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Turns:
    """Waits for each turn and tells what the one before took, as a line of JSON on ``answers``.

    CPU seconds are those of all threads of the process; peak memory is the resident set's highest
    value within the turn, weights and all, and ``libraries_mb`` what it was when this was made:
    after imports, before a model is loaded (Linux tells it).
    """

    def __init__(self, gpu: Callable[[], dict[str, float]] | None = None) -> None:
        self._gpu = gpu
        self._libraries_kb = _kb("VmRSS")
        self._answers = sys.stdout
        sys.stdout = sys.stderr  # what libraries print must not pass for an answer
        self._cpu = self._wall = 0.0

    def begin(self) -> bool:
        """Wait for the next word; False when there is none to come."""
        if sys.stdin.readline().strip() != "go":
            return False
        if self._gpu:
            self._gpu()
        _RESET.write_text("5")
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return True

    def end(self, **figures: Any) -> None:
        """Tell what the turn took, with figures of the update itself and of ``gpu``."""
        figures |= self._gpu() if self._gpu else {}
        taken = {
            "cpu_seconds": time.process_time() - self._cpu,
            "wall_seconds": time.perf_counter() - self._wall,
            "peak_mb": _kb("VmHWM") / 1024,
            "libraries_mb": self._libraries_kb / 1024,
        }
        self.answer({**taken, **figures})

    def answer(self, figures: dict[str, Any]) -> None:
        """Write one line of JSON where the benchmark reads it."""
        print(json.dumps(figures), file=self._answers, flush=True)


def _kb(name: str) -> int:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1])
