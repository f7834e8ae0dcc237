"""The table and the plot of `benchmarks.learning`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

TITLES = {
    "full": "full loop",
    "bandit": "contextual bandit (scikit-learn)",
    "skyline": "every right answer told",
    "unweighted": "without importance weights",
    "no-baseline": "without baseline",
    "no-replay": "without replay",
    "no-lagrangian": "without the safety constraint",
    "no-corrections": "without corrections",
}
COLUMNS = (
    *("", "seeds", "at the start", "at the end", "of the way to the skyline"),
    *("live, last 2,000", "beyond all topics: handed over", "violations, last 2,000"),
)
Run = dict[str, Any]


def runs_of(found: dict[str, Any], name: str, variant: str) -> list[Run]:
    """Return the runs of a variant on a set, by seed."""
    runs = [r for r in found.get("runs", []) if (r["set"], r["variant"]) == (name, variant)]
    return sorted(runs, key=lambda one: int(one["seed"]))


def table(found: dict[str, Any]) -> str:
    """Return a Markdown table per set: held-out questions right at the end, mean [least, most]."""
    parts = []
    for name in dict.fromkeys(run["set"] for run in found.get("runs", [])):
        lines = [
            f"{name}, held-out questions, {found['interactions']:,} interactions\n",
            f"| {' | '.join(COLUMNS)} |",
            "|---" * len(COLUMNS) + "|",
        ]
        sky = [run["points"][-1]["right"] for run in runs_of(found, name, "skyline")]
        for variant, title in TITLES.items():
            runs = runs_of(found, name, variant)
            if runs:
                lines.append(_row(title, runs, fmean(sky) if sky else None))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row(title: str, runs: Sequence[Run], sky: float | None) -> str:
    first = fmean(run["points"][0]["right"] for run in runs)
    ends = [run["points"][-1]["right"] for run in runs]
    way = f"{(fmean(ends) - first) / (sky - first):.0%}" if sky is not None else "-"
    handed = [run["points"][-1].get("out-of-scope: handed over") for run in runs]
    lived = [_late(run, "right") for run in runs if "live" in run]
    harmed = [_late(run, "violations") for run in runs if "live" in run]
    return (
        f"| {title} | {len(runs)} | {first:.3f} | {_span(ends)} | {way} | {_span(lived)} "
        f"| {_span([one for one in handed if one is not None])} | {_span(harmed)} |"
    )


def _late(run: Run, what: str) -> float:
    return fmean(part[what] for part in run["live"][-4:])


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{fmean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw right answers against interactions, the mean over seeds and a band from least to most;
    below, what was live of requests beyond all topics and of violations."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(run["set"] for run in found.get("runs", [])))
    if not names:
        return
    figure, axes = plt.subplots(1, len(names) + 1, figsize=(6 * len(names) + 5, 4.2))
    for axis, name in zip(axes, names, strict=False):
        for variant, title in TITLES.items():
            runs = runs_of(found, name, variant)
            if runs:
                _curve(axis, runs, title)
        axis.set(title=name, xlabel="live interactions", ylabel="held-out questions right")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    for variant in ("full", "no-lagrangian"):
        runs = runs_of(found, names[-1], variant)
        if runs:
            at = [part["interactions"] for part in runs[0]["live"]]
            rates = [
                fmean(part)
                for part in zip(*([p["violations"] for p in r["live"]] for r in runs), strict=True)
            ]
            axes[-1].plot(at, rates, label=f"violations, {TITLES[variant]}")
    axes[-1].axhline(0.02, linestyle=":", label="limit")
    axes[-1].set(title=f"{names[-1]}: live", xlabel="live interactions")
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(axis: Any, runs: Sequence[Run], title: str) -> None:
    at = [point["interactions"] for point in runs[0]["points"]]
    columns = list(zip(*([point["right"] for point in run["points"]] for run in runs), strict=True))
    (line,) = axis.plot(at, [fmean(column) for column in columns], marker=".", label=title)
    axis.fill_between(
        at, [min(c) for c in columns], [max(c) for c in columns], alpha=0.15, color=line.get_color()
    )
