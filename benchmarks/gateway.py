"""What does the gateway cost? Ours, a raw ASGI proxy and two peers before one mock upstream.

``python -m benchmarks.gateway [--peers DIR]`` writes ``benchmarks/results/gateway.json`` and prints
its table; ``--table`` prints what is there. CPU is that of the gateway's processes, all threads,
over closed-loop rounds in which the gateways take turns; it counts until the outbox is delivered.
Added latency is that of open-loop arrivals, less that of the mock asked directly at the same rate.
Where a peer is not installed, the commands that install it are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import psutil
import uvloop

from benchmarks.gateway_field import INSTALL, Contestant, field
from benchmarks.gateway_load import Result, Target, closed_loop, open_loop
from benchmarks.gateway_upstream import ANSWER, WORDS
from benchmarks.loop import RESULTS, commit, machine

FILE = RESULTS / "gateway.json"
IDLE_SECONDS = 3.0
SLOWEST_SHARE = 0.7  # a gateway is asked at a rate up to this share of what one core allows
KINDS = {"plain": False, "streaming": True}


def main() -> int:
    """Measure and print the table."""
    options = _options()
    if not options.table:
        given = {n: v for n, v in vars(options).items() if n not in ("table", "out", "peers")}
        ran_on = commit()
        with TemporaryDirectory() as folder, field(Path(folder), options.peers) as parts:
            measured = measure(*parts, options)
        result = {"machine": machine(), "commit": ran_on, "options": given, **measured}
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    found = msgspec.json.decode(options.out.read_bytes())
    print(table(found))
    if len(found["gateways"]) < 4:
        print(f"\nA peer is missing. To measure it too, install it and give --peers:\n{INSTALL}")
    return 0


def measure(
    mock: Target, gateways: list[Contestant], broker: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return all figures of one run."""
    rng = random.Random(options.seed)
    found: dict[str, Any] = {
        gateway.name: {"plain": {"cpu_ms": []}, "streaming": {"cpu_ms": []}} for gateway in gateways
    }
    for gateway in gateways:
        for stream in KINDS.values():
            _ask(closed_loop(gateway.target, options.warm_up, options.clients, rng, stream=stream))
        gateway.settled()
        found[gateway.name]["idle_cpu_ms_per_second"] = _idle(gateway)
    beside: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(options.rounds):
        for gateway in rng.sample(gateways, len(gateways)):
            for kind in KINDS:
                spent = _round(gateway, kind, broker, options, rng)
                found[gateway.name][kind]["cpu_ms"].append(spent[0])
                if gateway is gateways[0]:
                    beside[kind].append(spent[1])
        print(f"round {number + 1} of {options.rounds} of CPU", file=sys.stderr)
    found_latency = {
        kind: {
            f"{rate:g}": _latencies(mock, gateways, found, kind, rate, options, rng)
            for rate in options.rates
        }
        for kind in KINDS
    }
    sizes = {"answer_bytes": len(ANSWER), "chunks": len(WORDS)}
    return {**sizes, "broker_cpu_ms": beside, "gateways": found, "added_ms": found_latency}


def _round(
    gateway: Contestant, kind: str, broker: int, options: argparse.Namespace, rng: random.Random
) -> tuple[float, float]:
    """Return the CPU milliseconds per request of (the gateway, the broker)."""
    server = psutil.Process(broker)
    before, beside = gateway.cpu_seconds(), sum(server.cpu_times()[:2])
    requests = options.requests if gateway.name[:7] != "litellm" else options.requests // 8
    load = closed_loop(gateway.target, requests, options.clients, rng, stream=KINDS[kind])
    _all_answered(gateway.name, _ask(load))
    gateway.settled()
    spent, aside = gateway.cpu_seconds() - before, sum(server.cpu_times()[:2]) - beside
    return 1000 * spent / requests, 1000 * aside / requests


def _idle(gateway: Contestant) -> float:
    before = gateway.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    return 1000 * (gateway.cpu_seconds() - before) / IDLE_SECONDS


def _latencies(
    mock: Target,
    gateways: list[Contestant],
    found: dict[str, Any],
    kind: str,
    rate: float,
    options: argparse.Namespace,
    rng: random.Random,
) -> dict[str, Any]:
    """Return per gateway the added milliseconds, p50 and p99, of each round at one rate."""
    able = [
        g for g in gateways if rate * median(found[g.name][kind]["cpu_ms"]) < 1000 * SLOWEST_SHARE
    ]
    added: dict[str, Any] = {gateway.name: [] for gateway in able}
    for _ in range(options.latency_rounds):
        alone = _quantiles("mock", mock, kind, rate, options, rng)
        for gateway in rng.sample(able, len(able)):
            through = _quantiles(gateway.name, gateway.target, kind, rate, options, rng)
            added[gateway.name].append({at: through[at] - alone[at] for at in through})
    return added


def _quantiles(
    name: str,
    target: Target,
    kind: str,
    rate: float,
    options: argparse.Namespace,
    rng: random.Random,
) -> dict[str, float]:
    result = _ask(open_loop(target, rate, options.seconds, rng, stream=KINDS[kind]))
    _all_answered(name, result)
    # A stream's words come when the upstream says them: what is added shows in the first.
    times = sorted(1000 * (t.first if KINDS[kind] else t.whole) for t in result.timings)
    return {"p50": times[len(times) // 2], "p99": times[int(len(times) * 0.99)]}


def _ask(load: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


def _all_answered(name: str, result: Result) -> None:
    if result.failed:
        raise RuntimeError(f"{name}: {result.failed} requests failed: {result.failures}")


def table(found: dict[str, Any]) -> str:
    """Return the results as a Markdown table; ratios are to our gateway, per round."""
    gateways = found["gateways"]
    ours = next(iter(gateways))
    rates = list(found["added_ms"]["plain"])
    names = ["gateway"]
    for kind in KINDS:
        names += [f"{kind}: CPU ms per request", "times ours"]
        names += [f"{kind}: added ms p50 / p99 at {rate}/s" for rate in rates]
    rows = [f"| {' | '.join(names)} |", f"{'|---' * len(names)}|"]
    for name, of_it in gateways.items():
        cells = [name]
        for kind in KINDS:
            cpu, own = of_it[kind]["cpu_ms"], gateways[ours][kind]["cpu_ms"]
            cells += [_spread(cpu), _spread([a / b for a, b in zip(cpu, own, strict=True)])]
            for rate in rates:
                added = found["added_ms"][kind][rate].get(name)
                at = (
                    [f"{median(one[q] for one in added):.2f}" for q in ("p50", "p99")]
                    if added
                    else []
                )
                cells.append(" / ".join(at) or "-")
        rows.append(f"| {' | '.join(cells)} |")
    beside = found["broker_cpu_ms"]["plain"]
    idle = {name: f"{of_it['idle_cpu_ms_per_second']:.0f}" for name, of_it in gateways.items()}
    note = (
        f"Median over the rounds [smallest, largest]. Broker beside ours: {_spread(beside)} ms "
        f"CPU per plain request. Idle, CPU ms per second: {idle}. {found['options']}"
    )
    return "\n".join([*rows, "", note])


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", help="virtual environment of the peers"
    )
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print the table only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="per round; LiteLLM an eighth")
    parser.add_argument("--clients", type=int, default=32, help="of the closed loop")
    parser.add_argument("--warm-up", type=int, default=500, metavar="N", help="requests before")
    parser.add_argument("--latency-rounds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[30.0, 200.0], metavar="PER_S")
    parser.add_argument("--seconds", type=float, default=15.0, help="at one rate")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
