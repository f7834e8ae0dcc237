"""One picture of a run: reward, violations and the share of each version over time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from console.report import RunLog, VersionFigures

BINS = 40
MAX_LABELS = 20

Floats = NDArray[np.float64]


def plot_run(log: RunLog, versions: Sequence[VersionFigures], path: Path) -> None:
    """Draw the run into a PNG file; a run without decisions draws nothing."""
    if not log.decisions:
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    start = min(decision.time for decision in log.decisions)
    decided = _seconds([decision.time for decision in log.decisions], start)
    edges = np.linspace(0.0, max(float(decided.max()), 1.0), BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(10, 10), sharex=True, layout="constrained"
    )

    rewards = [r for r in log.rewards if r.value is not None and r.revision == 0]
    at = _seconds([reward.decided_at for reward in rewards], start)
    values = np.array([reward.value for reward in rewards], dtype=np.float64)
    top.plot(middles, _mean(at, values, edges), color="tab:blue")
    top.set_ylabel("mean reward")
    top.axhline(0.0, color="grey", linewidth=0.5)

    at = _seconds([safety.decided_at for safety in log.safety], start)
    values = np.array([float(safety.violation) for safety in log.safety])
    middle.plot(middles, _mean(at, values, edges), color="tab:red")
    middle.set_ylabel("share of violations")
    middle.set_ylim(bottom=0.0)

    served = [row for row in versions if row.decisions]
    shares = _shares(log, [row.version for row in served], decided, edges)
    labels = [f"{row.sequence} {row.version[:8]} {row.phase}" for row in served]
    colors = mpl.colormaps["tab20"](np.arange(len(labels)) % 20)
    bottom.stackplot(middles, shares, labels=labels, colors=colors)
    bottom.set_ylabel("share of answers")
    bottom.set_xlabel("seconds since the first answer")
    bottom.set_ylim(0.0, 1.0)
    if len(labels) <= MAX_LABELS:
        handles, names = bottom.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", fontsize="x-small", ncols=5)
    figure.suptitle(f"{len(log.decisions)} answers, {len(served)} versions")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _seconds(moments: Sequence[datetime], start: datetime) -> Floats:
    return np.array([(moment - start).total_seconds() for moment in moments], dtype=np.float64)


def _mean(at: Floats, values: Floats, edges: Floats) -> Floats:
    """Return the mean per bin; a bin without values is a gap in the line."""
    counts = np.histogram(at, edges)[0]
    sums = np.histogram(at, edges, weights=values)[0]
    means: Floats = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return means


def _shares(log: RunLog, order: Sequence[str], decided: Floats, edges: Floats) -> list[Floats]:
    names = np.array([decision.assignment.policy_version for decision in log.decisions])
    totals = np.maximum(np.histogram(decided, edges)[0], 1)
    return [np.histogram(decided[names == name], edges)[0] / totals for name in order]
