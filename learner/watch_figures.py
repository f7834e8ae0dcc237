"""The numbers of the watch: how far something rose, with its standard error, or why nobody knows.

Shape suffixes: n answers, b resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from contracts.evidence import Alarm, Unwatched, View, WatchFigure
from learner.off_policy import Floats, Resampled


class Watched(Struct, frozen=True):
    """What was seen of what is watched, and what could not be."""

    figures: tuple[WatchFigure, ...]
    unwatched: tuple[Unwatched, ...]


class Part(Struct, frozen=True):
    """Values before and after, and what each counts."""

    earlier_n: Floats
    later_n: Floats
    before_n: Floats
    after_n: Floats


def absent(
    names: Sequence[Alarm], view: View, reason: str, awaits: tuple[str, ...] = ()
) -> tuple[Unwatched, ...]:
    """Return that these could not be seen, and why."""
    return tuple(Unwatched(name=n, view=view, reason=reason, awaits=awaits) for n in names)


def rise(
    name: Alarm,
    view: View,
    values_n: Floats,
    before_n: Floats,
    after_n: Floats,
    resampled: Resampled,
) -> WatchFigure:
    """Compare the mean of the values under two sets of weights."""
    return change(name, view, [Part(values_n, values_n, before_n, after_n)], resampled)


def change(name: Alarm, view: View, parts: Sequence[Part], resampled: Resampled) -> WatchFigure:
    """Compare sums of weighted means of two sets of values; that of ``length`` is relative."""
    before = after = 0.0
    change_b = np.zeros(len(resampled.counts_bn))
    for p in parts:
        before += float((p.earlier_n * p.before_n).sum() / p.before_n.sum())
        after += float((p.later_n * p.after_n).sum() / p.after_n.sum())
        change_b += resampled.ratio(p.later_n * p.after_n, p.after_n)
        change_b -= resampled.ratio(p.earlier_n * p.before_n, p.before_n)
    scale = max(before, 1.0) if name == "length" else 1.0
    return WatchFigure(
        name=name,
        view=view,
        before=before,
        rise=(after - before) / scale,
        error=float(change_b.std(ddof=1)) / scale,
        samples=int(np.count_nonzero(parts[0].before_n + parts[0].after_n)),
    )
