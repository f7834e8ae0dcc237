"""The simulated users: who they are, how active, and how kindly they judge."""

from __future__ import annotations

import random

from msgspec import Struct

USERS = 200
SKEW, OFFSET = 0.7, 3.0
MOOD = 0.15


class User(Struct, frozen=True):
    """One user; ``bias`` is added to the utility this user feels."""

    user_id: str
    activity: float
    bias: float


class Population:
    """A fixed set of users drawn by seed; activity falls off as a power of the rank (Zipf)."""

    def __init__(self, seed: int, size: int = USERS) -> None:
        rng = random.Random(f"population/{seed}")
        self.users = tuple(
            User(f"user-{seed}-{rank:04d}", (rank + OFFSET) ** -SKEW, rng.gauss(0.0, MOOD))
            for rank in range(size)
        )
        self._activity = [user.activity for user in self.users]

    def draw(self, rng: random.Random) -> User:
        """Return a user, the active ones more often."""
        return rng.choices(self.users, self._activity)[0]
