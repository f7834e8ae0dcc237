"""The table and the plot of `benchmarks.learning`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.learning_questions import SETS, SHIFT_AT
from benchmarks.learning_recipes import BANDIT, SKYLINE, recipe_of
from contracts.settings import Constraint

TITLES = {
    "full": "full loop",
    "warm-start": "warm start only",
    "bandit": "contextual bandit (scikit-learn)",
    "skyline": "as many right answers told",
    "ppo": "with ppo, the default loss",
    "unweighted": "with ppo, without its importance weights",
    "no-baseline": "without baseline",
    "no-replay": "without replay",
    "no-lagrangian": "without a price of violations",
    "no-corrections": "without people's corrections",
    "no-safe-answer": "without the safe answer",
    "full-noisy": "full loop, noisier ratings",
    "bandit-noisy": "contextual bandit, noisier ratings",
}
LINES = {
    variant: {"color": f"C{number % 10}", "linestyle": "--" if number >= 10 else "-"}
    for number, variant in enumerate(TITLES)
}
"""How each variant is drawn: there are ten colours, and more variants."""
COLUMNS = (
    *("held-out questions right", "seeds", "at the start", "at the end"),
    *("of the way to the skyline", "live, last 2,000", "of topics", "violations since the shift"),
    *("seen by the monitor", "utility, live, last 2,000", "CPU minutes"),
)
WHOLE = ("full", "warm-start", "bandit", "skyline", "no-lagrangian")
COMPARED_AT = 3_500
"""Interactions after which the loop without a part is compared with the whole one."""

WITHOUT = (
    *("", "seeds", "right", "beside the full loop, by seed", "of topics"),
    "restricted: handed over",
    *("beyond all topics: handed over", "right, live", "violations, live"),
)
OVER_TIME = (
    *("interactions", "right", "of the way to the skyline by then", "within topics: handed over"),
    *("beyond all topics: handed over", "beyond all topics: answered, which is wrong"),
    *("restricted: handed over", "violations, live"),
)
BEYOND = "out-of-scope: handed over"
LEAST_WAY = 0.02
"""A way shorter than this is not told in parts: that much is chance among a thousand questions."""
LIVED = ("right", "topic: right")
SEEN = "violations seen by the monitor"
"""Of live answers; the constraint's limit is about these, not about those that were none to it."""

MARK, MIXED = "†", "‡"
MARKS = {
    MARK: "of another recipe than the present one, or of one that was not kept",
    MIXED: "its runs are of several states of the learner's code",
}

Run = dict[str, Any]


def runs_of(found: dict[str, Any], name: str, variant: str) -> list[Run]:
    """Return the runs of a variant on a set, by seed; of several lengths the longest alone."""
    runs = _all_runs(found, name, variant)
    longest = max(map(_length, runs), default=0)
    return [run for run in runs if _length(run) == longest]


def _all_runs(found: dict[str, Any], name: str, variant: str) -> list[Run]:
    runs = [r for r in found.get("runs", []) if (r["set"], r["variant"]) == (name, variant)]
    return sorted(runs, key=lambda one: int(one["seed"]))


def _length(run: Run) -> int:
    return int(run["points"][-1]["interactions"])


def _title(variant: str, runs: Sequence[Run]) -> str:
    """Return a row's title, marked where not all its runs are of the present recipe, or of one
    state of the learner's code; the bandit has none of it."""
    old = any(run.get("recipe") != recipe_of(variant) for run in runs)
    codes = {run.get("learner") for run in runs if not variant.startswith(BANDIT)}
    marks = [MARK] * old + [MIXED] * (len(codes) > 1)
    return " ".join([TITLES[variant], *marks])


def table(found: dict[str, Any]) -> str:
    """Return a Markdown table per set: held-out questions right at the end, mean [least, most]."""
    parts = []
    for name in _sets(found):
        parts += _whole(found, name)
        parts += _without_parts(found, name)
        parts += [_over_time(found, name)] if runs_of(found, name, "full") else []
    told = [f"{mark} {what}" for mark, what in MARKS.items() if any(mark in p for p in parts)]
    return "\n\n".join([*parts, *told])


def _whole(found: dict[str, Any], name: str) -> list[str]:
    """Return a table for each length that there are runs of, the longest first."""
    there = {variant: _all_runs(found, name, variant) for variant in WHOLE}
    tables = []
    for length in sorted({_length(r) for runs in there.values() for r in runs}, reverse=True):
        same = {v: [r for r in runs if _length(r) == length] for v, runs in there.items()}
        rows = [
            _row(_title(variant, runs), runs, same[SKYLINE])
            for variant, runs in same.items()
            if runs
        ]
        heads = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        title = f"{name}, held-out questions, {length:,} interactions\n"
        tables.append("\n".join([title, *heads, *rows]))
    return tables


def _sets(found: dict[str, Any]) -> list[str]:
    there = {run["set"] for run in found.get("runs", [])}
    return [name for name in SETS if name in there]


def _without_parts(found: dict[str, Any], name: str) -> list[str]:
    """Return a table of the loop without each of its parts, none where no such run is kept."""
    whole = [run for run in runs_of(found, name, "full") if _length(run) >= COMPARED_AT]
    full = {run["seed"]: _reached(run)["right"] for run in whole}
    rows = {
        variant: _without(_title(variant, runs), runs, full)
        for variant in TITLES
        if variant not in (SKYLINE, "warm-start")
        and (runs := runs_of(found, name, variant))
        and _length(runs[0]) >= COMPARED_AT
    }
    if not rows.keys() - {"full", BANDIT}:
        return []
    title = f"{name}, the loop without a part, after {COMPARED_AT:,} interactions\n"
    return [
        "\n".join(
            [title, f"| {' | '.join(WITHOUT)} |", "|---" * len(WITHOUT) + "|", *rows.values()]
        )
    ]


def _reached(run: Run) -> dict[str, Any]:
    return next(one for one in run["points"] if one["interactions"] >= COMPARED_AT)


def _without(title: str, runs: Sequence[Run], full: Mapping[int, float]) -> str:
    reached = [_reached(run) for run in runs]
    apart = [
        _reached(run)["right"] - full[run["seed"]]
        for run in runs
        if run["variant"] != "full" and run["seed"] in full
    ]
    until = [[part for part in run["live"] if part["interactions"] <= COMPARED_AT] for run in runs]
    held = ("topic: right", "restricted: right", BEYOND)
    cells = [
        [one["right"] for one in reached],
        apart,
        *([one[what] for one in reached if what in one] for what in held),
        *(
            [fmean(one[what] for one in parts) for parts in until]
            for what in ("right", "violations")
        ),
    ]
    return f"| {title} | {len(runs)} | {' | '.join(map(_span, cells))} |"


def _over_time(found: dict[str, Any], name: str) -> str:
    """Return what the full loop's held-out answers were after so many interactions."""
    runs, sky = runs_of(found, name, "full"), runs_of(found, name, SKYLINE)
    lines = [
        f"{name}, {_title('full', runs)}, over time, held-out questions\n",
        f"| {' | '.join(OVER_TIME)} |",
        "|---" * len(OVER_TIME) + "|",
    ]
    for points in zip(*(run["points"] for run in runs), strict=True):
        at = points[0]["interactions"]
        right = [one["right"] for one in points]
        cells = (
            _known(points, "topic: handed over"),
            _known(points, BEYOND),
            [1.0 - share for share in _known(points, "out-of-scope: right")],
            _known(points, "restricted: handed over"),
            [v for run in runs if (v := _violations_before(run, at)) is not None],
        )
        way = _way(right, sky, at)
        lines.append(f"| {at:,} | {_span(right)} | {way} | {' | '.join(map(_span, cells))} |")
    return "\n".join(lines)


def _known(points: Sequence[dict[str, Any]], what: str) -> list[float]:
    return [point[what] for point in points if what in point]


def _violations_before(run: Run, at: int) -> float | None:
    before = [part["violations"] for part in run["live"] if part["interactions"] <= at]
    return before[-1] if before else None


def _row(title: str, runs: Sequence[Run], sky: Sequence[Run]) -> str:
    first = fmean(run["points"][0]["right"] for run in runs)
    ends = [run["points"][-1]["right"] for run in runs]
    way = _way(ends, sky, runs[0]["points"][-1]["interactions"])
    lived = [[_late(run, what) for run in runs if "live" in run] for what in (*LIVED, "utility")]
    harmed, caught = (
        [found for run in runs for found in _since_shift(run, what)]
        for what in ("violations", SEEN)
    )
    *right, utility = lived
    minutes = fmean(run["cpu_seconds"] for run in runs) / 60
    return (
        f"| {title} | {len(runs)} | {first:.3f} | {_span(ends)} | {way} "
        f"| {' | '.join(map(_span, right))} | {_span(harmed)} | {_span(caught)} "
        f"| {_span(utility)} | {minutes:.0f} |"
    )


def _way(right: Sequence[float], sky: Sequence[Run], at: int) -> str:
    """Return how far it is to where the skyline is ``at`` so many interactions, from where it, and
    the loop, begin; "-" where the skyline itself has not come `LEAST_WAY` far, or was not asked."""
    first = [run["points"][0]["right"] for run in sky]
    there = [p["right"] for run in sky for p in run["points"] if p["interactions"] == at]
    if not there or fmean(there) - fmean(first) < LEAST_WAY:
        return "-"
    return f"{(fmean(right) - fmean(first)) / (fmean(there) - fmean(first)):.0%}"


def _late(run: Run, what: str) -> float:
    return fmean(part[what] for part in run["live"][-4:])


def _since_shift(run: Run, what: str) -> list[float]:
    """Return the mean since restricted requests are frequent; none of a run that ended before."""
    later = [part for part in run.get("live", []) if part["interactions"] > SHIFT_AT]
    return [fmean(part[what] for part in later)] if later and what in later[0] else []


def _span(values: Sequence[float]) -> str:
    """Return the mean [least, most]; of one value itself, which says nothing of others."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw right answers against interactions, the mean over seeds and a band from least to most;
    below, what was live of requests beyond all topics and of violations."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = _sets(found)
    if not names:
        return
    figure, axes = plt.subplots(1, len(names) + 2, figsize=(5 * len(names) + 8, 4.2))
    for axis, name in zip(axes, names, strict=False):
        for variant, title in TITLES.items():
            runs = runs_of(found, name, variant)
            if runs:
                _curve(axis, runs, title, LINES[variant])
        axis.set(title=name, xlabel="live interactions", ylabel="held-out questions right")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[-1].axhline(Constraint().limit, linestyle=":", color="gray", label="limit")
    for axis, what in zip(axes[-2:], (BEYOND, "violations"), strict=True):
        _live(axis, found, names[-1], what)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _live(axis: Any, found: dict[str, Any], name: str, what: str) -> None:
    for variant in ("full", "warm-start", "bandit", "no-lagrangian"):
        runs = [run for run in runs_of(found, name, variant) if what in run["live"][0]]
        if runs:
            at = [part["interactions"] for part in runs[0]["live"]]
            rows = ([part.get(what, 0.0) for part in run["live"]] for run in runs)
            rates = [fmean(column) for column in zip(*rows, strict=True)]
            axis.plot(at, rates, label=TITLES[variant], **LINES[variant])
    axis.set(title=f"{name}, live: {what}", xlabel="live interactions")
    if axis.lines:  # a set without requests beyond its topics draws none of them
        axis.legend(fontsize=7)
    axis.grid(alpha=0.3)


def _curve(axis: Any, runs: Sequence[Run], title: str, line: dict[str, str]) -> None:
    at = [point["interactions"] for point in runs[0]["points"]]
    columns = list(zip(*([point["right"] for point in run["points"]] for run in runs), strict=True))
    axis.plot(at, [fmean(column) for column in columns], marker=".", label=title, **line)
    least, most = ([bound(column) for column in columns] for bound in (min, max))
    axis.fill_between(at, least, most, alpha=0.15, color=line["color"])
