"""The results of `benchmarks.detection` as the tables of docs/statistics.md and as a plot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.loop import ROOT

DOCUMENT = ROOT / "docs" / "statistics.md"

_Row = dict[str, Any]


def write_tables(results: _Row, *, save: bool) -> str:
    """Return all tables; where asked, put each between its marks in docs/statistics.md."""
    tables = {
        "detection": _detection(results["detection"], "Rule"),
        "settings": _detection(results["settings"], "Setting"),
        "traps": _traps(results["traps"]),
        "bias": _bias(results["bias"]),
        "rewards": _rewards(results["rewards"]),
        "sample_ratio": _sample_ratio(results["sample_ratio"]),
        "plans": _plans(results["plans"]),
        "origin": _origin(results),
    }
    if save:
        text = DOCUMENT.read_text()
        for name, table in tables.items():
            marks = rf"(?s)(<!-- {name} -->\n).*?(<!-- end -->)"
            text = re.sub(marks, lambda m, new=table: f"{m[1]}{new}\n{m[2]}", text)  # type: ignore[misc] # a default binds the loop's value
        DOCUMENT.write_text(text)
    return "\n\n".join(tables.values())


def draw_plot(results: _Row, path: Path) -> None:
    """Draw the share of runs rolled back against canary requests, equal arms beside worse ones."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    titles = {
        "curve_equal": "nothing is wrong: false rollbacks",
        "curve_worse": "2 % instead of 0.5 % violations",
    }
    for axis, (curve, title) in zip(axes, titles.items(), strict=True):
        for at, row in enumerate(results["detection"]):
            shares = [100 * (n + 1) / 200 for n in range(len(row[curve]))]
            ours = at == 0
            axis.step(
                [0.0, *row[curve], *(row[curve][-1:] and [10_000.0])],
                [0.0, *shares, *shares[-1:]],
                where="post",
                label=row["name"],
                color="black" if ours else f"C{at - 1}",
                linewidth=2.5 if ours else 1.0,
                linestyle="-" if at <= 5 else "--",
            )
        axis.set(title=title, xlabel="canary requests", xlim=(0, 10_000), ylim=(0, 102))
    axes[0].axhline(1.0, color="grey", linewidth=0.7)
    axes[0].set_ylabel("runs rolled back, %")
    axes[1].set_xlim(0, 3000)
    axes[1].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(found: _Row) -> str:
    """A share and its standard error; of none, the 95 % upper bound (rule of three)."""
    if not found["share"]:
        return f"0 (below {300 / found['runs']:.2f} %)"
    return f"{100 * found['share']:.2f} ± {100 * found['se']:.2f} %"


def _pair(values: list[float] | None) -> str:
    return "–" if values is None else " / ".join(f"{value:,.0f}" for value in values)


def _detection(rows: list[_Row], first: str) -> str:
    head = (first, "False rollback", "Power", "Canary requests p50 / p90", "All requests p50 / p90")
    return _table(
        (*head, "Canary violations p50 / p90"),
        [
            (
                row["name"],
                _percent(row["false"]),
                f"{100 * row['power']['share']:.1f} %",
                *(_pair(row[name]) for name in ("canary", "total", "violations")),
            )
            for row in rows
        ],
    )


def _traps(rows: list[_Row]) -> str:
    return _table(
        ("Trap", "Gate", "False verdict"),
        [(row["trap"], row["gate"], _percent(row)) for row in rows],
    )


def _bias(rows: list[_Row]) -> str:
    return _table(
        ("Gate", "5 min", "15 min", "30 min", "60 min"),
        [
            (row["gate"], *("no data" if x is None else f"{x:+.3f}" for x in row["bias"]))
            for row in rows
        ],
    )


def _rewards(rows: list[_Row]) -> str:
    return _table(
        ("Rewards", "Sequence", "alpha", "Excluded 0", "Canary rewards until then p50 / p90"),
        [
            (
                *(row["rewards"], row["sequence"], f"{100 * row['alpha']:g} %"),
                *(_percent(row), _pair(row["canary"])),
            )
            for row in rows
        ],
    )


def _sample_ratio(rows: list[_Row]) -> str:
    return _table(
        ("Promised", "True share", "Test", "Alarms", "Users until then p50 / p90"),
        [
            (
                *(f"{100 * row['weight']:g} %", f"{100 * row['true']:g} %", row["test"]),
                *(_percent(row), _pair(row["users"])),
            )
            for row in rows
        ],
    )


def _plans(rows: list[_Row]) -> str:
    def promoted(fate: _Row) -> str:
        return _percent(fate["promoted"])

    return _table(
        (
            *("Minima of canary requests", "Asked to pass", "Equal promoted"),
            *("Twofold promoted", "Fourfold promoted", "Canary requests of equal p50 / p90"),
            "of fourfold",
        ),
        [
            (
                *(row["plan"], row["rule"], *map(promoted, row["fates"])),
                *(_pair(row["fates"][at]["canary"]) for at in (0, 2)),
            )
            for row in rows
        ],
    )


def _origin(results: _Row) -> str:
    machine = results["machine"]
    return (
        f"Seed {results['seed']}, {results['runs']:,} runs a row (four times as many in the first "
        f"table, half as many for rewards and plans), commit {results['commit']}, "
        f"{machine['cpu']}, {machine['system']}."
    )
