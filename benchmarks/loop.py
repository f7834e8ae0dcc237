"""Does the loop close? Runs the demo per product and seed and keeps its report with the machine.

``python -m benchmarks.loop desk:0 desk:1 banking77:0`` runs ``headrace demo`` once for each and
writes ``benchmarks/results/loop-<users>-<seed>.json``; ``--table`` prints what is there as the
table of the README. A run takes about ten minutes on two cores.

``--model PATH`` gives the users another base model, and its name joins the file's. A chat model of
135 million parameters takes seconds for an answer there, so such a run is short, says nothing of
utility, and is a row of a second table. ``HEADRACE_*`` settings of the environment are part of the
result.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from contracts.settings import PREFIX, SECRETS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RUN_SECONDS = 1800.0


def run_demo(users: str, seed: int, options: list[str]) -> dict[str, Any]:
    """Run the demo and return its report; CalledProcessError when a request failed."""
    with TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        command = [sys.executable, "-m", "console", "demo", "--users", users, "--seed", str(seed)]
        command += [*options, "--report", str(report)]
        subprocess.run(command, check=True, timeout=RUN_SECONDS)
        return read_report(report)


def read_report(path: Path) -> dict[str, Any]:
    """Return a report of the demo."""
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    return found


def keep(report: dict[str, Any], ran_on: str, model: str, results: Path = RESULTS) -> Path:
    """Write a report with what it was taken on and with, and the model's name; return where."""
    origin = {"machine": machine(), "commit": ran_on, "model": model, "settings": given_settings()}
    result = {**origin, "report": report}
    name = "-".join(filter(None, ("loop", report["users"], str(report["seed"]), model)))
    path = results / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    return path


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform()}


def given_settings() -> dict[str, str]:
    """Return the settings that came from the environment, without secrets and places on a disk."""
    secrets = {f"{PREFIX}{section}__{name}".upper() for section, name in SECRETS}
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(PREFIX) and not name.endswith("_DIR") and name not in secrets
    }


def commit() -> str:
    """Return the commit of the checkout, marked when files other than results differ from it;
    "unknown" where there is no checkout, or no git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # a copy without its history: the figures are worth keeping all the same
    changed = _git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    found = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def table(results: Path = RESULTS) -> str:
    """Return the results as the Markdown table of the README, those of given models as another."""
    names = (
        *("users, seed", "interactions", "failed", "rewards", "samples, each once"),
        *("explained", "versions served", "utility", "violations", "right action"),
        *("freshness p50 / p95", "minutes"),
    )
    own, given = [_heading(names)], [_heading(("model", *names))]
    for path in sorted(results.glob("loop-*.json")):
        result = read_report(path)
        row = _row(result["report"])
        if model := result.get("model"):
            given.append(f"| {model} {row}")
        else:
            own.append(row)
    return "\n".join([*own, "", *given] if len(given) > 1 else own)


def _heading(names: tuple[str, ...]) -> str:
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def _row(report: dict[str, Any]) -> str:
    fresh = report["freshness_seconds"]
    ages = " / ".join("-" if fresh[at] is None else f"{fresh[at]:.0f}" for at in ("p50", "p95"))
    return (
        f"| {report['users']}, {report['seed']} | {report['interactions']} "
        f"| {report['failed_requests']} | {report['rewards']} | {report['samples_learned']} "
        f"| {report['decisions_explained']} | {report['versions_served']} "
        f"| {_change(report, 'utility')} "
        f"| {_change(report, 'violation_rate')} | {_change(report, 'right_action')} "
        f"| {ages} s | {report['duration_seconds'] / 60:.1f} |"
    )


def _change(report: dict[str, Any], name: str) -> str:
    before, after = (
        f"{report[f'{name}_{when}']:.3f} ± {report[f'{name}_{when}_se']:.3f}"
        for when in ("before", "after")
    )
    return f"{before} → {after}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="USERS:SEED")
    parser.add_argument("--interactions", type=int)
    parser.add_argument("--rate", type=float, help="questions a second")
    parser.add_argument("--held-out", type=int, metavar="N", help="questions before and after")
    parser.add_argument("--model", type=Path, metavar="PATH", help="a base model of yours")
    parser.add_argument("--name", help="its name in the result; by default its directory's")
    parser.add_argument("--keep", type=Path, metavar="REPORT", help="keep a report made just now")
    parser.add_argument("--table", action="store_true", help="print the table only")
    return parser.parse_args()


def main() -> int:
    """Run what is asked for and print the table."""
    options = _options()
    model = options.name or (options.model.resolve().name if options.model else "")
    if options.keep:
        keep(read_report(options.keep), commit(), model)
    wanted = {
        name: getattr(options, name) for name in ("interactions", "rate", "held_out", "model")
    }
    given = [
        word
        for name, value in wanted.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    for run in options.runs:
        users, _, seed = run.partition(":")
        ran_on = commit()
        keep(run_demo(users, int(seed or 0), given), ran_on, model)
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
