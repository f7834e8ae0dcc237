"""Users take turns, so that whoever says much does not take the room of those who say little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def in_turns(users: Sequence[str]) -> list[int]:
    """Return the places of all in turns: the first of each user, then the second of each, ..."""
    so_far = Counter[str]()
    turns = []
    for place, user in enumerate(users):
        turns.append((so_far[user], place))
        so_far[user] += 1
    return [place for _, place in sorted(turns)]


def newest_in_turns(users: Sequence[str], most: int) -> list[int]:
    """Return at most so many places in their order: the newest, last one, of each user first."""
    last = len(users) - 1
    return sorted(last - turn for turn in in_turns(users[::-1])[:most])
