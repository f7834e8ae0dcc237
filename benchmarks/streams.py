"""What do the streams cost? Our worker and four peers with the same jobs, on one kind of broker.

``python -m benchmarks.streams [--peers DIR]`` writes ``benchmarks/results/streams.json`` and prints
its tables; ``--table`` prints what is there, ``--parts`` measures some parts only. CPU is that of
the process, all threads, over a backlog that is appended while the process is stopped, until every
reward is in the log. Contestants take turns, each on a new broker. Latency is from a rating to its
reward at open-loop arrivals. Where a peer is not installed, the commands that install it are
printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import msgspec

from benchmarks.loop import RESULTS, commit, machine
from benchmarks.streams_field import (
    CONTESTANTS,
    INSTALL,
    Contestant,
    Running,
    running,
)
from benchmarks.streams_growth import growth
from benchmarks.streams_growth import table as growth_table
from benchmarks.streams_load import append, interactions, latencies
from benchmarks.streams_recovery import recovery
from benchmarks.streams_recovery import table as recovery_table
from console.store_servers import redis_server
from contracts.clock import SystemClock
from contracts.ids import uuid7_ids
from contracts.settings import Features

Online = Literal["sqlite", "redis"]

PARTS = ("cpu", "latency", "growth", "recovery")
FILE = RESULTS / "streams.json"
START_SECONDS, ROUND_SECONDS = 90.0, 120.0
SETTLE_SECONDS = 1.0
"""After the last reward: features are written and offsets committed within it."""

IDLE_SECONDS = 1.5
FINAL = ("rating",)
MEASURED = ("cpu_ms", "per_second", "resident_mb", "idle")


def main() -> int:
    """Measure and print the tables."""
    options = _options()
    chosen = [c for c in CONTESTANTS if options.only is None or _is_named(c, options.only)]
    able = {c: python for c in chosen if (python := c.python(options.peers))}
    if not options.table:
        given = {n: v for n, v in vars(options).items() if n not in ("table", "out", "peers")}
        result = {"machine": machine(), "commit": commit(), "options": given}
        with TemporaryDirectory() as folder:
            result |= measure(able, Path(folder), options)
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print(table(msgspec.json.decode(options.out.read_bytes())))
    if len(able) < len(chosen) and not options.table:
        print(f"\nA peer is missing. To measure it too, install it and give --peers:\n{INSTALL}")
    return 0


def measure(
    able: dict[Contestant, str], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of the parts that were asked for."""
    found: dict[str, Any] = {}
    if not {"cpu", "latency"}.isdisjoint(options.parts):
        found["streams"] = contest(able, folder, options)
    if "growth" in options.parts:
        found["growth"] = growth(options.events, folder, options.seed)
    if "recovery" in options.parts:
        found["recovery"] = [recovery(n, folder / f"recovery-{n}") for n in options.open]
    return found


def contest(
    able: dict[Contestant, str], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of every contestant, round by round."""
    rng = random.Random(options.seed)
    found: dict[str, Any] = {c.name: {name: [] for name in (*MEASURED, "latency_ms")} for c in able}
    for number in range(options.rounds * ("cpu" in options.parts)):
        for one in rng.sample(list(able), len(able)):
            place = folder / f"cpu-{number}-{one.name.replace(' ', '-')}"
            for name, value in _round(one, able[one], place, options).items():
                found[one.name][name].append(value)
        print(f"round {number + 1} of {options.rounds} of CPU", file=sys.stderr)
    for number in range(options.latency_rounds * ("latency" in options.parts)):
        timed = [c for c in able if c.job == "whole" and c.window_seconds is None]
        for one in rng.sample(timed, len(timed)):
            place = folder / f"latency-{number}-{one.name.replace(' ', '-')}"
            try:
                found[one.name]["latency_ms"].append(_latency(one, able[one], place, options, rng))
            except TimeoutError as error:
                print(f"{one.name} falls behind: {error}", file=sys.stderr)
                found[one.name]["falls_behind"] = True
        print(f"round {number + 1} of {options.latency_rounds} of latency", file=sys.stderr)
    return found


def _round(
    one: Contestant, python: str, folder: Path, options: argparse.Namespace
) -> dict[str, float]:
    """Return CPU milliseconds per interaction, interactions per second and resident memory."""
    new_id = uuid7_ids(SystemClock())
    with _running(one, python, folder, options.online) as process:
        asyncio.run(append(process.kafka, list(interactions(options.warm_up, new_id))))
        process.await_rewards(options.warm_up, START_SECONDS)
        time.sleep(SETTLE_SECONDS)
        idle = _idle(process)
        process.pause()
        asyncio.run(append(process.kafka, list(interactions(options.interactions, new_id))))
        before, begin = process.cpu_seconds(), time.monotonic()
        process.resume()
        end = process.await_rewards(options.warm_up + options.interactions, ROUND_SECONDS)
        time.sleep(SETTLE_SECONDS)
        # Those that ask for records without a pause are not charged for the wait.
        spent = process.cpu_seconds() - before - idle * SETTLE_SECONDS
        return {
            "idle": round(idle, 3),
            "cpu_ms": round(1000 * spent / options.interactions, 4),
            "per_second": round(options.interactions / (end - begin), 1),
            "resident_mb": round(process.resident_mb(), 1),
        }


@contextmanager
def _running(one: Contestant, python: str, folder: Path, online: Online) -> Iterator[Running]:
    """Run a contestant with a feature store of its own, on Redis a server too."""
    waits: dict[str, object] = {"final_signals": FINAL}
    if one.window_seconds is not None:
        waits = {"window_seconds": one.window_seconds}
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())[0] if online == "redis" else ""
        features = Features(online=online, redis=redis)
        yield stack.enter_context(running(one, python, folder, features, **waits))


def _is_named(one: Contestant, words: list[str]) -> bool:
    return all(word.lower() in one.name.lower() for word in words)


def _idle(process: Running) -> float:
    """Return the cores that a contestant uses while there is nothing to do."""
    before = process.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    cores = (process.cpu_seconds() - before) / IDLE_SECONDS
    return min(cores, float(os.cpu_count() or 1))  # the counter goes by ticks, and may be late


def _latency(
    one: Contestant, python: str, folder: Path, options: argparse.Namespace, rng: random.Random
) -> dict[str, float]:
    """Return p50 and p99 of the milliseconds from a rating to its reward."""
    new_id = uuid7_ids(SystemClock())
    with _running(one, python, folder, options.online) as process:
        asyncio.run(append(process.kafka, list(interactions(options.warm_up, new_id))))
        process.await_rewards(options.warm_up, START_SECONDS)
        before, begin = process.cpu_seconds(), time.monotonic()
        arrivals = latencies(process.kafka, options.rate, options.seconds, new_id, rng)
        times = sorted(1000 * seconds for seconds in asyncio.run(arrivals))
        spent = (process.cpu_seconds() - before) / (time.monotonic() - begin)
        return {
            "p50": round(times[len(times) // 2], 1),
            "p99": round(times[int(len(times) * 0.99)], 1),
            "cores": round(spent, 2),
        }


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown tables."""
    tables = []
    if "streams" in found:
        tables.append(_contest_table(found["streams"], found["options"]["rate"]))
    if "growth" in found:
        tables.append(growth_table(found["growth"]))
    if "recovery" in found:
        tables.append(recovery_table(found["recovery"]))
    note = f"Median over the rounds [smallest, largest]. {found['options']}"
    return "\n\n".join([*tables, note])


def _contest_table(streams: dict[str, Any], rate: float) -> str:
    """Return one row per contestant; ratios are to ours with the same job, per round."""
    names = (
        *("contestant", "interactions per CPU-second", "CPU ms each", "CPU against ours"),
        *("interactions/s", "resident MB", "cores when idle"),
        *(f"p50 / p99 ms at {rate:g}/s", "cores then"),
    )
    rows = [f"| {' | '.join(names)} |", f"{'|---' * len(names)}|"]
    for name, of_it in streams.items():
        base = streams.get(f"{name.partition(': ')[0]}: Headrace")
        ratios = (
            [a / b for a, b in zip(of_it["cpu_ms"], base["cpu_ms"], strict=True)] if base else []
        )
        times = of_it["latency_ms"]
        cells = [
            name,
            _spread([1000 / cpu for cpu in of_it["cpu_ms"]], 0),
            _spread(of_it["cpu_ms"], 3),
            _spread(ratios, 2),
            _spread(of_it["per_second"], 0),
            f"{max(of_it['resident_mb'], default=0):.0f}",
            _spread(of_it["idle"], 2),
            " / ".join(f"{median(t[q] for t in times):.0f}" for q in ("p50", "p99") if times)
            or ("falls behind" if of_it.get("falls_behind") else "-"),
            f"{median(t['cores'] for t in times):.2f}" if times else "-",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    middle, low, high = (f"{f(values):,.{digits}f}" for f in (median, min, max))
    return f"{middle} [{low}, {high}]"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.add_argument("--peers", type=Path, metavar="DIR", help="virtual environment of peers")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print the tables only")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--online", choices=("sqlite", "redis"), default="sqlite")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="contestants with all of these in their names"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--interactions", type=int, default=5000, metavar="N", help="per round")
    parser.add_argument("--warm-up", type=int, default=500, metavar="N", help="interactions before")
    parser.add_argument("--latency-rounds", type=int, default=1)
    parser.add_argument("--rate", type=float, default=500.0, metavar="PER_S")
    parser.add_argument("--seconds", type=float, default=12.0, help="at that rate")
    parser.add_argument("--events", type=int, default=1_000_000, help="of history, for growth")
    parser.add_argument("--open", type=int, nargs="+", default=[1_000, 20_000, 100_000])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
