"""What do features cost? Writes and reads of our way beside Feast's, on sqlite and Redis.

``python -m benchmarks.features`` writes ``benchmarks/results/features.json`` and prints its tables;
``--table`` prints what is there. The contestants take turns in every round and the median round
counts. CPU is this process's; a second figure is that of the Redis server. Raw Redis and raw sqlite
keep no order and no types: they are the limit. Redis is one of its own on a free port.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import psutil

from benchmarks.features_field import Contestant, readers, stores, writers
from benchmarks.features_history import history
from benchmarks.loop import RESULTS, commit, machine
from console.store_servers import redis_server

FILE = RESULTS / "features.json"


def main() -> int:
    """Measure and print the tables."""
    options = _options()
    if not options.table:
        given = {n: str(v) for n, v in vars(options).items() if n not in ("table", "out")}
        origin = {"machine": machine(), "commit": commit(), "options": given}
        result = {**origin, **_measured(options)}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print(table(msgspec.json.decode(options.out.read_bytes())))
    return 0


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"writes": {}, "reads": {}}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        address, pid = stack.enter_context(redis_server())
        server = psutil.Process(pid)
        for store in stores(folder, address):
            cpu = _cpu_of(server) if store.is_redis else float
            for batch in options.batches:
                name = f"{store.name}, {batch} rows"
                taking = writers(store, batch)
                found["writes"][name] = _rounds(taking, options.rounds, options.rows // batch, cpu)
            taking = readers(store)
            found["reads"][store.name] = _rounds(taking, options.rounds, options.reads, cpu)
        found["history"] = history(folder / "history", options.history)
    return found


def _cpu_of(process: psutil.Process) -> Callable[[], float]:
    def seconds() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    return seconds


def _rounds(
    field: list[Contestant], rounds: int, calls: int, server: Callable[[], float]
) -> dict[str, Any]:
    """Let contestants take turns; return per contestant what the median round took."""
    taken: dict[str, list[dict[str, float]]] = {one.name: [] for one in field}
    for one in field:
        one.call(0)
    for number in range(rounds):
        for one in field[number % len(field) :] + field[: number % len(field)]:
            print(f"{number + 1}/{rounds} {one.name}", file=sys.stderr)
            taken[one.name].append(one.measure(max(1, calls // one.fewer), server))
    return {
        name: {figure: median(each[figure] for each in of_it) for figure in of_it[0]}
        for name, of_it in taken.items()
    }


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown tables."""
    lines = _table(
        ("store, batch", "way", "rows per CPU second", "CPU µs per row", "server's CPU µs per row"),
        [
            (where, name, *_per_row(of_it))
            for where, ways in found["writes"].items()
            for name, of_it in ways.items()
        ],
    )
    lines += [
        "",
        *_table(
            ("store", "read", "CPU ms", "p50 ms", "p99 ms", "server's CPU ms"),
            [
                (
                    where,
                    name,
                    *(f"{of_it[n]:.3f}" for n in ("cpu_ms", "p50_ms", "p99_ms", "server_ms")),
                )
                for where, ways in found["reads"].items()
                for name, of_it in ways.items()
            ],
        ),
    ]
    lines += [
        "",
        *_table(
            ("writes before", "CPU ms per write", "longest write, ms", "files"),
            [
                (
                    f"{row['writes']:,}",
                    f"{row['cpu_ms']:.2f}",
                    f"{row['longest_ms']:.0f}",
                    row["files"],
                )
                for row in found["history"]
            ],
        ),
    ]
    return "\n".join(lines)


def _per_row(of_it: dict[str, float]) -> tuple[str, str, str]:
    micros = of_it["cpu_ms"] * 1000 / of_it["rows"]
    return (
        f"{1e6 / micros:,.0f}",
        f"{micros:.1f}",
        f"{of_it['server_ms'] * 1000 / of_it['rows']:.1f}",
    )


def _table(heading: tuple[str, ...], rows: list[Any]) -> list[str]:
    lines = [f"| {' | '.join(heading)} |", f"{'|---' * len(heading)}|"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000, help="written in a round, at most")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 100, 500])
    parser.add_argument("--reads", type=int, default=2000, help="in a round")
    parser.add_argument("--history", type=int, default=4096, help="small writes of one process")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print the tables only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
