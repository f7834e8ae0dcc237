"""The older and the newer side of a trend, and what is short where there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from learner.experience import Experience
from learner.off_policy import Floats

LEAST_ANSWERS, LEAST_USERS = 30, 5
"""With fewer, on either side of a comparison, there is none."""


class Group(Struct, frozen=True):
    """Answers that must be on both sides, and who asked for them."""

    who: str
    answers: Sequence[Experience]


class Split(Struct, frozen=True):
    """The first version of the newer side, and why nothing can be compared, "" when it can."""

    first: int
    short: str


def enough(answers: Sequence[Experience]) -> bool:
    """Tell whether so many answers of so many users can be compared with others."""
    return len(answers) >= LEAST_ANSWERS and len({e.user_id for e in answers}) >= LEAST_USERS


def shortage(who: str, answers: Sequence[Experience]) -> str:
    """Return how many answers there are, and how many are needed."""
    users = len({e.user_id for e in answers})
    return (
        f"{len(answers)} answers of {users} {who}, at least {LEAST_ANSWERS} of {LEAST_USERS} needed"
    )


def split(*groups: Group) -> Split:
    """Cut where most groups have enough on either side, and the smallest is as large as can be."""
    best, found = (-1, -1), 0
    for first in _firsts(groups):
        sides = [side for group in groups for side in _parts(group, first)]
        score = (sum(map(enough, sides)), min(map(len, sides)))
        if score > best:
            best, found = score, first
    if best[0] == 2 * len(groups):
        return Split(found, "")
    if best[0] < 0:
        total = sum(len(group.answers) for group in groups)
        return Split(found, f"one version gave all {total} answers that are kept")
    return Split(found, "; ".join(_short(group, found) for group in groups if _short(group, found)))


def awaited(judged: Group, taught: Group) -> tuple[int, ...]:
    """Return the versions whose next answers alone can give the comparison, where there is none.

    Only those to users who train may be short, and on the newer side: each batch that is learned
    brings some there and takes some away from the older side, so whoever waits does not wait long.
    Of judges nothing is awaited: what those who left said is never replaced.
    """
    for first in _firsts((judged, taught)):
        older, _ = _parts(taught, first)
        if enough(older) and all(map(enough, _parts(judged, first))):
            given = {e.behaviour_sequence for e in (*judged.answers, *taught.answers)}
            return tuple(sorted(sequence for sequence in given if sequence >= first))
    return ()


def weights(answers: Sequence[Experience], first: int) -> tuple[Floats, Floats]:
    """Return what each answer counts on the older and on the newer side.

    Below 1 where its user has more than twice an equal share of the answers on its side.
    """
    sides = [(e.user_id, e.behaviour_sequence >= first) for e in answers]
    counts, total = Counter(sides), Counter(newer for _, newer in sides)
    users = Counter(newer for _, newer in counts)
    share_n = np.array(
        [min(1.0, 2.0 * total[one[1]] / users[one[1]] / counts[one]) for one in sides]
    )
    newer_n = np.array([float(newer) for _, newer in sides])
    return (1.0 - newer_n) * share_n, newer_n * share_n


def _firsts(groups: Sequence[Group]) -> list[int]:
    """Return where a newer side may begin, so that there is an older one."""
    return sorted({e.behaviour_sequence for group in groups for e in group.answers})[1:]


def _parts(group: Group, first: int) -> tuple[list[Experience], list[Experience]]:
    older = [e for e in group.answers if e.behaviour_sequence < first]
    return older, [e for e in group.answers if e.behaviour_sequence >= first]


def _short(group: Group, first: int) -> str:
    named = zip(("older", "newer"), _parts(group, first), strict=True)
    return "; ".join(
        f"{side} versions: {shortage(group.who, part)}" for side, part in named if not enough(part)
    )
