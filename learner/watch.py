"""Watches for rewards that are earned without helping: what rises that nobody wanted to rise.

A policy that learns from imperfect signals finds what pays: longer answers, refusals and questions
back that nobody complains about, tools that work to no purpose, the taste of those who train it.
Each of these is a number, and this file says how far it rose and how sure that is, in two views:

    step    the candidate against its parent, on the same questions of judges, by probabilities
    trend   answers of the newer versions against those of the older ones, as they were served

What is alarming is for the settings and the gate. Pure numpy; standard errors by a bootstrap over
users. Shape suffixes: n answers, k first decisions, b resamples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from msgspec import Struct

from contracts.evidence import Alarm, WatchFigure
from contracts.settings import Watch
from learner.experience import Experience
from learner.first_decision import Decisions
from learner.off_policy import Floats, Resampled, resample_users

LEAST_ANSWERS, LEAST_USERS = 30, 5
"""With fewer, on either side of a comparison, there is none."""


class Reweighted(Struct, frozen=True, kw_only=True):
    """Judged answers as one policy sees them.

    The probabilities of the first decisions, n×k, and the weights pi/mu of each answer, up to its
    first decision and as a whole.
    """

    decisions_nk: Floats
    first_n: Floats
    whole_n: Floats


def steps(
    judged: Sequence[Experience],
    decisions: Decisions,
    parent: Reweighted,
    candidate: Reweighted,
    resampled: Resampled,
    watch: Watch,
) -> tuple[WatchFigure, ...]:
    """Return how far the candidate goes beyond its parent on these questions.

    Where a decision is its own, its probability is known; else answers are weighed.
    """
    if not _enough(judged):
        return ()
    ones_n = np.ones(len(judged))
    found = [
        _rise("length", "step", _lengths(judged), parent.whole_n, candidate.whole_n, resampled),
        _rise("tool-alone", "step", _alone(judged), parent.first_n, candidate.first_n, resampled),
    ]
    for name, actions in _kinds(watch):
        places = _places(decisions, actions)
        if places:
            before_n, after_n = (
                policy.decisions_nk[:, places].sum(axis=1) for policy in (parent, candidate)
            )
            found.append(_change(name, "step", before_n, after_n, ones_n, ones_n, resampled))
        else:
            shown_n = _shares(judged, actions)
            found.append(_rise(name, "step", shown_n, parent.first_n, candidate.first_n, resampled))
    return tuple(found)


def trends(
    judged: Sequence[Experience],
    taught: Sequence[Experience],
    watch: Watch,
    seed: int,
    foretold_n: Floats | None = None,
) -> tuple[WatchFigure, ...]:
    """Return how far the newer versions went beyond the older ones, of the answers that are kept.

    ``judged`` are answers to judges, ``taught`` those to the others. Their rewards should move
    together: ``drift`` is how much more the latter rose. ``foretold_n`` is what a reward model says
    of the judged ones, where there is one: ``model-drift`` is how much more that rose. Of one user
    no more counts than twice an equal share, else whoever asks most decides.
    """
    everybody = [*judged, *taught]
    is_newer_n = _newer([e.behaviour_sequence for e in everybody])
    if not _both_enough(everybody, is_newer_n):
        return ()
    share_n = _shares_of_users(everybody, is_newer_n)
    newer_n, older_n = is_newer_n * share_n, (1.0 - is_newer_n) * share_n
    resampled = resample_users([e.user_id for e in everybody], seed)
    found = [
        _rise("length", "trend", _lengths(everybody), older_n, newer_n, resampled),
        _rise("tool-alone", "trend", _alone(everybody), older_n, newer_n, resampled),
    ]
    for name, actions in _kinds(watch):
        shown_n = _shares(everybody, actions)
        found.append(_rise(name, "trend", shown_n, older_n, newer_n, resampled))
    judged_n = np.arange(len(everybody)) < len(judged)
    if not _both_enough(judged, is_newer_n[judged_n]):
        return tuple(found)
    rewards_n = np.array([e.reward for e in everybody])
    if _both_enough(taught, is_newer_n[~judged_n]):
        found.append(_drift(rewards_n, judged_n.astype(float), older_n, newer_n, resampled))
    if foretold_n is not None:
        over_n = np.zeros(len(everybody))
        over_n[judged_n] = foretold_n - rewards_n[judged_n]
        found.append(
            _rise("model-drift", "trend", over_n, older_n * judged_n, newer_n * judged_n, resampled)
        )
    return tuple(found)


def _kinds(watch: Watch) -> tuple[tuple[Alarm, tuple[str, ...]], ...]:
    return (("refuse", watch.refuse_actions), ("clarify", watch.clarify_actions))


def _rise(
    name: Alarm,
    view: str,
    values_n: Floats,
    before_n: Floats,
    after_n: Floats,
    resampled: Resampled,
) -> WatchFigure:
    """Compare the mean of the values under two sets of weights."""
    return _change(name, view, values_n, values_n, before_n, after_n, resampled)


def _change(
    name: Alarm,
    view: str,
    earlier_n: Floats,
    later_n: Floats,
    before_n: Floats,
    after_n: Floats,
    resampled: Resampled,
) -> WatchFigure:
    """Compare the weighted means of two sets of values; that of ``length`` is relative."""
    before = float((earlier_n * before_n).sum() / before_n.sum())
    after = float((later_n * after_n).sum() / after_n.sum())
    change_b = resampled.ratio(later_n * after_n, after_n) - resampled.ratio(
        earlier_n * before_n, before_n
    )
    scale = max(before, 1.0) if name == "length" else 1.0
    return WatchFigure(
        name=name,
        view="step" if view == "step" else "trend",
        before=before,
        rise=(after - before) / scale,
        error=float(change_b.std(ddof=1)) / scale,
        samples=int(np.count_nonzero(before_n + after_n)),
    )


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


def _newer(sequences: Sequence[int]) -> Floats:
    """Return 1 for answers of the newer versions, cut where both sides are as large as can be."""
    counts, below, best, cut = Counter(sequences), 0, 0, 0
    for sequence in sorted(counts):
        smaller = min(below, len(sequences) - below)
        if smaller > best:
            best, cut = smaller, sequence
        below += counts[sequence]
    return np.array([float(best > 0 and sequence >= cut) for sequence in sequences])


def _shares_of_users(answers: Sequence[Experience], newer_n: Floats) -> Floats:
    """Return what each answer counts, below 1 where its user has more than twice an equal share of
    the answers on its side."""
    sides = [(e.user_id, bool(newer)) for e, newer in zip(answers, newer_n, strict=True)]
    counts, total = Counter(sides), Counter(newer for _, newer in sides)
    users = Counter(newer for _, newer in counts)
    return np.array([min(1.0, 2.0 * total[one[1]] / users[one[1]] / counts[one]) for one in sides])


def _both_enough(answers: Sequence[Experience], newer_n: Floats) -> bool:
    older = [e for e, newer in zip(answers, newer_n, strict=True) if not newer]
    newer = [e for e, newer in zip(answers, newer_n, strict=True) if newer]
    return _enough(older) and _enough(newer)


def _enough(answers: Sequence[Experience]) -> bool:
    return len(answers) >= LEAST_ANSWERS and len({e.user_id for e in answers}) >= LEAST_USERS


def _places(decisions: Decisions, actions: Collection[str]) -> list[int]:
    """Return the decisions that are these actions; none when one is told apart from no other tool.

    Tools whose names begin alike are one decision, named by all of them.
    """
    found = [
        n for n, name in enumerate(decisions.names) if not {*name.split("|")}.isdisjoint(actions)
    ]
    alone = all({*decisions.names[n].split("|")} <= {*actions} for n in found)
    return found if alone else []


def _lengths(answers: Sequence[Experience]) -> Floats:
    return np.array([float(len(e.token_ids)) for e in answers])


def _alone(answers: Sequence[Experience]) -> Floats:
    return np.array([float(e.tool_alone) for e in answers])


def _shares(answers: Sequence[Experience], actions: Collection[str]) -> Floats:
    return np.array([float(e.action in actions) for e in answers])
