"""Drift of rewards: whether those who train pay for what judges do not care for.

Users who judge train nothing, so what they say is the truth held out. A reward model is held
against it in the same way. Shape suffixes: n answers, b resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from contracts.evidence import Unwatched, WatchFigure
from learner.experience import Experience
from learner.off_policy import Floats, Resampled
from learner.watch_figures import Watched, absent, rise
from learner.watch_sides import Group, awaited, split, weights


def reward_drift(
    judged: Sequence[Experience],
    taught: Sequence[Experience],
    resampled: Resampled,
    foretold_n: Floats | None,
    versions: Mapping[int, str],
) -> Watched:
    """Hold the rewards of those who train, and what a model says, against those of judges."""
    everybody = [*judged, *taught]
    groups = Group("judges", judged), Group("users who train", taught)
    rewards_n = np.array([e.reward for e in everybody])
    judged_n = (np.arange(len(everybody)) < len(judged)).astype(float)
    found, missing = list[WatchFigure](), list[Unwatched]()
    cut = split(*groups)
    if cut.short:
        awaits = tuple(versions[n] for n in awaited(*groups) if n in versions)
        missing += absent(("drift",), "trend", cut.short, awaits)
    else:
        found.append(_drift(rewards_n, judged_n, *weights(everybody, cut.first), resampled))
    if foretold_n is None:
        return Watched(tuple(found), tuple(missing))
    cut = split(groups[0])
    if cut.short:
        missing += absent(("model-drift",), "trend", cut.short)
    else:
        over_n = np.zeros(len(everybody))
        over_n[: len(judged)] = foretold_n - rewards_n[: len(judged)]
        older_n, newer_n = (side_n * judged_n for side_n in weights(everybody, cut.first))
        found.append(rise("model-drift", "trend", over_n, older_n, newer_n, resampled))
    return Watched(tuple(found), tuple(missing))


def _drift(
    rewards_n: Floats, judged_n: Floats, older_n: Floats, newer_n: Floats, resampled: Resampled
) -> WatchFigure:
    """Return how much more the reward of those who train rose than that of those who judge."""
    groups = {
        (judges, newer): judged_n * (newer_n if newer else older_n)
        for judges, judged_n in ((True, judged_n), (False, 1.0 - judged_n))
        for newer in (True, False)
    }
    means = {key: float((rewards_n * w).sum() / w.sum()) for key, w in groups.items()}
    means_b = {key: resampled.ratio(rewards_n * w, w) for key, w in groups.items()}
    gap = {newer: means[False, newer] - means[True, newer] for newer in (True, False)}
    gap_b = {newer: means_b[False, newer] - means_b[True, newer] for newer in (True, False)}
    return WatchFigure(
        name="drift",
        view="trend",
        before=gap[False],
        rise=gap[True] - gap[False],
        error=float((gap_b[True] - gap_b[False]).std(ddof=1)),
        samples=len(rewards_n),
    )
