"""Does the loop close? Runs the demo per product and seed and keeps its report with the machine.

``python -m benchmarks.loop desk:0 desk:1 banking77:0`` runs ``headrace demo`` once for each and
writes ``benchmarks/results/loop-<users>-<seed>.json``; ``--table`` prints what is there as the
table of the README. A run takes about ten minutes on two cores.
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

RESULTS = Path(__file__).parent / "results"
RUN_SECONDS = 1800.0


def run_demo(users: str, seed: int, interactions: int) -> dict[str, Any]:
    """Run the demo and return its report; CalledProcessError when a request failed."""
    with TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        command = [sys.executable, "-m", "console", "demo", "--users", users, "--seed", str(seed)]
        command += ["--interactions", str(interactions)]
        subprocess.run([*command, "--report", str(report)], check=True, timeout=RUN_SECONDS)
        return read_report(report)


def read_report(path: Path) -> dict[str, Any]:
    """Return a report of the demo."""
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    return found


def keep(report: dict[str, Any], ran_on: str) -> Path:
    """Write a report with the machine and the commit it ran on; return where."""
    result = {"machine": machine(), "commit": ran_on, "report": report}
    path = RESULTS / f"loop-{report['users']}-{report['seed']}.json"
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


def commit() -> str:
    """Return the commit of the checkout, marked when files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


def table() -> str:
    """Return the results as the Markdown table of the README."""
    names = (
        *("users, seed", "interactions", "failed", "rewards", "samples, each once"),
        *("versions served", "utility", "violations", "right action"),
        *("freshness p50 / p95", "minutes"),
    )
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for path in sorted(RESULTS.glob("loop-*.json")):
        report = read_report(path)["report"]
        fresh = report["freshness_seconds"]
        rows.append(
            f"| {report['users']}, {report['seed']} | {report['interactions']} "
            f"| {report['failed_requests']} | {report['rewards']} | {report['samples_learned']} "
            f"| {report['versions_served']} | {_change(report, 'utility')} "
            f"| {_change(report, 'violation_rate')} | {_change(report, 'right_action')} "
            f"| {fresh['p50']:.0f} / {fresh['p95']:.0f} s | {report['duration_seconds'] / 60:.1f} |"
        )
    return "\n".join(rows)


def _change(report: dict[str, Any], name: str) -> str:
    before, after = (
        f"{report[f'{name}_{when}']:.3f} ± {report[f'{name}_{when}_se']:.3f}"
        for when in ("before", "after")
    )
    return f"{before} → {after}"


def main() -> int:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="USERS:SEED")
    parser.add_argument("--interactions", type=int, default=2400)
    parser.add_argument("--keep", type=Path, metavar="REPORT", help="keep a report made just now")
    parser.add_argument("--table", action="store_true", help="print the table only")
    options = parser.parse_args()
    if options.keep:
        keep(read_report(options.keep), commit())
    for run in options.runs:
        users, _, seed = run.partition(":")
        ran_on = commit()
        keep(run_demo(users, int(seed or 0), options.interactions), ran_on)
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
