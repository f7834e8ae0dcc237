"""Watches for rewards that are earned without helping: what rises that nobody wanted to rise.

A policy that learns from imperfect signals finds what pays: longer answers, refusals and questions
back that nobody complains about, tools that work to no purpose, the taste of those who train it.
Each of these is a number, and this file says how far it rose and how sure that is, in two views:

    step    the candidate against the version in service, on the same questions of judges, by
            probabilities
    trend   answers of the newer versions against those of the older ones, as they were served

What is alarming is for the settings and the gate. Pure numpy; standard errors by a bootstrap over
users. Shape suffixes: n answers, k first decisions, b resamples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from msgspec import Struct

from contracts.evidence import Alarm, Unwatched, View, WatchFigure
from learner.experience import Experience
from learner.first_decision import Decisions
from learner.off_policy import Floats, Resampled, resample_users
from learner.refusals import Evasion
from learner.reward_drift import reward_drift
from learner.watch_figures import Part, Watched, absent, change, rise
from learner.watch_sides import Group, enough, shortage, split, weights

_ALWAYS: tuple[Alarm, ...] = ("length", "tool-alone")
_CALM = 0.01
"""A share up to here, of what nothing could show, says nothing and is left out."""


class Reweighted(Struct, frozen=True, kw_only=True):
    """Judged answers as one policy sees them.

    The probabilities of the first decisions, n×k, and of the safe answer, and the weights pi/mu of
    each answer, up to its first decision and as a whole.
    """

    decisions_nk: Floats
    safe_n: Floats
    first_n: Floats
    whole_n: Floats


def steps(
    judged: Sequence[Experience],
    decisions: Decisions,
    incumbent: Reweighted,
    candidate: Reweighted,
    resampled: Resampled,
    evasions: Sequence[Evasion],
) -> Watched:
    """Return how far the candidate goes beyond what is in service on these questions.

    Where a decision is its own its probability is known, and so is that of the safe answer; else
    answers are weighed.
    """
    if not enough(judged):
        return unwatched_steps(shortage("judges", judged), evasions)
    found = [
        rise("length", "step", _lengths(judged), incumbent.whole_n, candidate.whole_n, resampled),
        rise("tool-alone", "step", _alone(judged), incumbent.first_n, candidate.first_n, resampled),
    ]
    for evasion in evasions:
        parts = _evasion_parts(evasion, judged, decisions, incumbent, candidate)
        found.append(change(evasion.name, "step", parts, resampled))
    return _seen(found, (), evasions, "step")


def unwatched_steps(reason: str, evasions: Sequence[Evasion]) -> Watched:
    """Return that no step can be seen, and why."""
    names = (*_ALWAYS, *(evasion.name for evasion in evasions))
    return _seen((), absent(names, "step", reason), evasions, "step")


def trends(
    judged: Sequence[Experience],
    taught: Sequence[Experience],
    evasions: Sequence[Evasion],
    seed: int,
    foretold_n: Floats | None = None,
    versions: Mapping[int, str] = {},
) -> Watched:
    """Return how far the newer versions went beyond the older ones, of the answers that are kept.

    ``judged`` are answers to judges, ``taught`` those to the others. Their rewards should move
    together: ``drift`` is how much more the latter rose. ``foretold_n`` is what a reward model says
    of the judged ones, where there is one: ``model-drift`` is how much more that rose. Of one user
    no more counts than twice an equal share, else whoever asks most decides. ``versions`` are the
    ids of the release numbers.
    """
    everybody = [*judged, *taught]
    resampled = resample_users([e.user_id for e in everybody], seed)
    found, missing = list[WatchFigure](), tuple[Unwatched, ...]()
    cut = split(Group("users", everybody))
    if cut.short:
        missing = absent((*_ALWAYS, *(e.name for e in evasions)), "trend", cut.short)
    else:
        older_n, newer_n = weights(everybody, cut.first)
        values: list[tuple[Alarm, Floats]] = [
            ("length", _lengths(everybody)),
            ("tool-alone", _alone(everybody)),
            *((each.name, _shown(each, everybody)) for each in evasions),
        ]
        found = [rise(name, "trend", v_n, older_n, newer_n, resampled) for name, v_n in values]
    seen = _seen(found, missing, evasions, "trend")
    rewards = reward_drift(judged, taught, resampled, foretold_n, versions)
    return Watched((*seen.figures, *rewards.figures), (*seen.unwatched, *rewards.unwatched))


def _seen(
    found: Sequence[WatchFigure],
    missing: Sequence[Unwatched],
    evasions: Sequence[Evasion],
    view: View,
) -> Watched:
    """Leave out calm figures of what nothing could have shown, and say why they are none."""
    unseen = {evasion.name: evasion.unseen for evasion in evasions if evasion.unseen}
    loud = [
        each
        for each in found
        if each.name not in unseen or max(each.before, each.before + each.rise) > _CALM
    ]
    shown = {each.name for each in loud}
    others = [each for each in missing if each.name not in unseen]
    silent = [
        each for n, why in unseen.items() if n not in shown for each in absent((n,), view, why)
    ]
    return Watched(tuple(loud), (*others, *silent))


def _evasion_parts(
    evasion: Evasion,
    judged: Sequence[Experience],
    decisions: Decisions,
    incumbent: Reweighted,
    candidate: Reweighted,
) -> list[Part]:
    """Return the shares of judged answers that evade, by tool, as the safe answer, by pattern."""
    ones_n = np.ones(len(judged))
    places = _places(decisions, evasion.actions)
    if places:
        before_n, after_n = (
            policy.decisions_nk[:, places].sum(axis=1) for policy in (incumbent, candidate)
        )
        parts = [Part(before_n, after_n, ones_n, ones_n)]
    else:
        called_n = np.array(evasion.called(judged), dtype=float)
        parts = [Part(called_n, called_n, incumbent.first_n, candidate.first_n)]
    if evasion.safe_ids:
        parts.append(Part(incumbent.safe_n, candidate.safe_n, ones_n, ones_n))
    if evasion.patterns:
        said_n = np.array(evasion.said(judged), dtype=float)
        parts.append(Part(said_n, said_n, incumbent.whole_n, candidate.whole_n))
    return parts


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


def _shown(evasion: Evasion, answers: Sequence[Experience]) -> Floats:
    shown = (evasion.called(answers), evasion.said_safe(answers), evasion.said(answers))
    return np.asarray(np.array(shown, dtype=float).sum(axis=0))
