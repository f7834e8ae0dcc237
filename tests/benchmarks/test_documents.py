"""The documents show what the kept results say: whole tables as the programs print them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from statistics import fmean, median, median_low
from typing import Any

import msgspec
import pytest

from benchmarks import learner, poison
from benchmarks.freshness import BATCH_SAMPLES
from benchmarks.learning_report import runs_of
from benchmarks.loop import RESULTS, ROOT

SHOWN = {
    "learner": "docs/learner-cost.md",
    "poison": "docs/learning.md",
    "reward_model": "docs/reward-model.md",
    "learning": "docs/learning.md",
    "freshness": "docs/learning.md",
    "losses": "docs/decisions/0410-losses-of-one-signature.md",
    "streams": "docs/streams-cost.md",
    "features": "docs/features.md",
    "loop": "README.md",
    "feature_freshness": "docs/features.md",
    "swap": "docs/versions.md",
    "off_policy": "docs/gate.md",
}
PARTLY = ("learning",)
"""Of these a document shows some of the tables."""


def tables(text: str) -> list[str]:
    """Return the Markdown tables of a text, trailing spaces aside."""
    found: list[list[str]] = [[]]
    for line in map(str.rstrip, text.splitlines()):
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def heading(table: str) -> str:
    return table.partition("\n")[0]


@pytest.fixture
def printed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    """Return the tables that a program prints of its kept result."""
    name = str(request.param)
    words = [name, "--table"]
    if name == "learning":  # it draws a plot beside its result
        words += ["--out", str(shutil.copy(RESULTS / "learning.json", tmp_path))]
    monkeypatch.setattr("sys.argv", words)
    assert import_module(f"benchmarks.{name}").main() == 0
    return tables(capsys.readouterr().out)


@pytest.mark.parametrize(("printed", "document"), SHOWN.items(), indirect=["printed"], ids=SHOWN)
def test_a_document_shows_the_tables_that_are_printed(
    printed: list[str], document: str, request: pytest.FixtureRequest
) -> None:
    headings = {heading(table) for table in printed}
    shown = tables((ROOT / document).read_text(encoding="utf-8"))
    quoted = [table for table in shown if heading(table) in headings]
    assert quoted, f"{document} shows no table with one of the headings {headings}"
    for table in quoted:
        assert table in printed
    if request.node.callspec.id not in PARTLY:
        assert not [table for table in printed if table not in quoted]


def kept(name: str) -> Any:
    return msgspec.json.decode((RESULTS / f"{name}.json").read_bytes())


def span(values: Iterable[float], digits: int) -> str:
    found = sorted(values)
    return f"{found[0]:.{digits}f} to {found[-1]:.{digits}f}"


def detection_figures() -> Iterator[str]:
    rows = {row["name"]: row for row in kept("detection")["detection"]}
    ours, shipped = list(rows.values())[:2]
    texts = [
        f"{100 * row['false']['share']:.2f} ± {100 * row['false']['se']:.2f} %"
        for row in (ours, shipped)
    ]
    yield (
        f"{texts[0]} false rollbacks, power {ours['power']['share']:.0%}, median "
        f"{ours['canary'][0]:.0f} canary requests at level 1 %; {texts[1]} and "
        f"{shipped['canary'][0]:.0f} at 0.4 %".replace("100%", "100 %")
    )
    false = {name: 100 * row["false"]["share"] for name, row in rows.items()}
    fixed = span((one for name, one in false.items() if name.startswith("fixed")), 0)
    repeated, msprt = (
        next(one for name, one in false.items() if name.startswith(start))
        for start in ("z test at each look", "mSPRT")
    )
    yield f"fixed thresholds {fixed} % false, repeated z {repeated:.0f} %, mSPRT {msprt:.0f} %"
    traps = kept("detection")["traps"]
    ours_there = [100 * row["share"] for row in traps if row["gate"].startswith("ours")]
    usual = [100 * row["share"] for row in traps if not row["gate"].startswith("ours")]
    assert min(ours_there) == 0.0
    yield f"false rollbacks 0 to {max(ours_there):.2f} %; the usual gates {span(usual, 0)} %"


def guard_figures() -> Iterator[str]:
    found = kept("guard")["prompt-injection"]
    shares = [f"{100 * one['share']:.0f} %" for one in found["attacks"].values()]
    yield f"injections {shares[0]} (bastioncorpus), {shares[1]} (in the wild) and {shares[2]} (made"
    harmless = found["harmless"].values()
    texts = round(sum(one["texts"] for one in harmless), -2)
    yield f"{sum(one['hits'] for one in harmless)} of {texts:,} harmless questions"


def served_figures() -> Iterator[str]:
    ways = kept("swap")["through"].values()
    answers = sum(way["requests"] for way in ways)
    bad = sum(way["failed"] + way["truncated"] + way["mixed"] for way in ways)
    medians = span((median_low(way["ready_ms"]) for way in ways), 0)
    most = max(max(way["ready_ms"]) for way in ways)
    yield f"{bad} of {answers:,} answers failed, truncated or of two versions"
    yield f"ready in {medians} ms (median), {most:.0f} at most"
    delays = [
        one
        for events in kept("feature_freshness")["milliseconds"].values()
        for one in events.values()
    ]
    middle, most = max(map(median, delays)), max(map(max, delays))
    yield f"{middle:.0f} ms (median), {most:.0f} at most, on sqlite"
    costs = {name: one["plain"]["cpu_ms"] for name, one in kept("gateway")["gateways"].items()}
    ours = costs.pop("Headrace, all on")
    times = [median(a / b for a, b in zip(ours, one, strict=True)) for one in costs.values()]
    yield f"{median(ours):.2f} ms of CPU, {times[0]:.1f} times a raw proxy, an eleventh of LiteLLM"
    assert round(1 / times[1]) == 11


def streams_figures() -> Iterator[str]:
    sqlite, redis = (kept(name)["streams"] for name in ("streams", "streams-redis"))
    ours = sqlite["whole: Headrace"]["cpu_ms"]
    rates = [1000 / median(one["whole: Headrace"]["cpu_ms"]) for one in (redis, sqlite)]
    yield f"{rates[0]:,.0f} interactions a second on Redis, {rates[1]:,.0f} on sqlite"
    quix, faust = (
        median(a / b for a, b in zip(sqlite[f"whole: {name}"]["cpu_ms"], ours, strict=True))
        for name in ("Quix Streams 3.28.1", "Faust agent per event")
    )
    yield f"in Quix Streams takes {quix:.1f} times the CPU"
    yield f"one event at a time in Faust {faust:.1f} times"


def learner_figures() -> Iterator[str]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in learner.table(kept("learner")).splitlines()
        if line.startswith("| smollm2") and "| Headrace |" in line
    ]
    cpu = span((1 / float(row[4].split()[0]) for row in rows), 2)
    whole, added = (span((float(row[at]) for row in rows), 2) for at in (8, 10))
    ceiling = span([int(row[5][:-2]) for row in rows], 0)
    yield f"{cpu} of its CPU; {whole} of the process's memory, {added} of what the update adds;"
    yield f"; {ceiling} % of the fastest"


def learning_figures() -> Iterator[str]:
    def right(variant: str, at: int) -> float:
        return fmean(run["points"][at]["right"] for run in runs_of(found, "clinc150", variant))

    found = kept("learning")
    seeds = {1: "one seed", 2: "two seeds", 3: "three seeds"}[
        len(runs_of(found, "clinc150", "full"))
    ]
    yield (
        f"held-out questions right {right('full', 0):.2f} → {right('full', -1):.2f} ({seeds}); "
        f"a contextual bandit {right('bandit', 0):.2f} → {right('bandit', -1):.2f}; "
        f"told as many right answers {right('skyline', -1):.2f}"
    )

    def live(variant: str, what: str) -> float:
        runs = runs_of(found, "clinc150", variant)
        return fmean(part[what] for run in runs for part in run["live"][-4:])

    sides = [{what: live(one, what) for what in ("right", "utility")} for one in ("full", "bandit")]
    yield (
        f"Of the last 2,000 live answers {sides[0]['right']:.3f} right against the bandit's "
        f"{sides[1]['right']:.3f}, utility {sides[0]['utility']:.2f} against "
        f"{sides[1]['utility']:.2f}"
    )
    runs = kept("freshness")["stack"]["runs"]
    ages = {run["publish_every"] * BATCH_SAMPLES: run["p50"] for run in runs}
    yield f"p50 {ages[64]:.0f} s with a release every 64 samples, {ages[128]:.0f} s with 128"
    cells = msgspec.convert(kept("poison")["cells"], list[poison.Cell])
    by_window = {
        window: [
            one
            for one in cells
            if (one.share, one.user_window, one.correcting, one.burst) == (0.1, window, False, 1)
        ]
        for window in poison.WINDOWS
    }
    few = [c for c in cells if c.share == 0.05 and not c.correcting]
    assert min(c.lowest for c in few) > 0.5  # "With 5 % colluding the good answer stays ahead"
    over, lowest, served = (
        [getattr(one, what) for one in by_window[poison.WINDOWS[0]]]
        for what in ("learned", "lowest", "served")
    )
    held, made = (
        sum(getattr(one, what) for one in by_window[poison.WINDOWS[0]])
        for what in ("held", "passed")
    )
    assert made == 0
    yield (
        f"give {by_window[1][0].flood:.0%} of the ratings".replace("%", " %")
        + f" | the learner falls to {fmean(lowest):.2f} for the good answer on the way and ends at "
        f"{fmean(over):.2f} [{min(over):.2f}, {max(over):.2f}]; users keep the base's "
        f"{fmean(served):.2f}, for the gate held all {held} versions"
    )


@pytest.mark.parametrize(
    "figures",
    [
        *(detection_figures, guard_figures, served_figures, streams_figures),
        *(learner_figures, learning_figures),
    ],
)
def test_the_front_page_says_what_the_results_say(figures: Callable[[], Iterator[str]]) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for text in figures():
        assert text in page
