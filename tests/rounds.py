"""How often tests of random faults are played, and from which seed: both from the environment.

They are taken out of it: the processes of the platform refuse a name that is no setting.
"""

from __future__ import annotations

import os
import random

_ROUNDS = os.environ.pop("HEADRACE_TEST_ROUNDS", "")
_SEED = os.environ.pop("HEADRACE_TEST_SEED", "")


def rounds(default: int) -> int:
    """Return HEADRACE_TEST_ROUNDS, or the default."""
    return int(_ROUNDS or default)


def given_seed() -> int | None:
    """Return HEADRACE_TEST_SEED, None when it is not set."""
    return int(_SEED) if _SEED else None


def new_seed() -> int:
    """Return a seed that nobody chose; print it, so that its round can be played again."""
    return random.SystemRandom().randrange(1_000_000)
