"""``python -m simulator run``: live users; ``python -m simulator demonstrations``: their past."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from contracts.errors import HeadraceError

FAILED, INTERRUPTED = 1, 130
API_KEY = "SIMULATOR_API_KEY"
"""The variable with the users' API key, for a gateway that wants one."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "demonstrations":
            return _demonstrations(options)
        return _run(options)
    except HeadraceError as error:
        print(f"simulator: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--users", choices=("desk", "banking77"), required=True)
    shared.add_argument("--seed", type=int, default=0)
    shared.add_argument("--data", type=Path, help="folder of public data sets", metavar="DIR")
    run = commands.add_parser("run", parents=[shared], help="simulated users of a gateway")
    run.add_argument("--gateway", required=True, metavar="URL")
    run.add_argument("--kafka", default="", metavar="HOST:PORT", help="default: HTTP alone")
    run.add_argument("--prefix", default="", help="prefix of the topic names")
    run.add_argument("--model", default="assistant", help="name of the policy")
    run.add_argument("--interactions", type=int, required=True, metavar="N")
    run.add_argument("--concurrency", type=int, default=8, metavar="C")
    run.add_argument("--population", type=int, default=200, metavar="N", help="different users")
    run.add_argument("--rate", type=float, metavar="R", help="at most R questions a second")
    run.add_argument("--truth", type=Path, required=True, metavar="FILE")
    past = commands.add_parser("demonstrations", parents=[shared], help="JSONL for a warm start")
    past.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser


def _data(options: argparse.Namespace) -> Path:
    from contracts.settings import load_settings

    return options.data or load_settings().data_dir


def _demonstrations(options: argparse.Namespace) -> int:
    from contracts.codec import to_json
    from simulator.product import make_product

    product = make_product(options.users, _data(options))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("wb") as file:
        for demonstration in product.demonstrations(options.seed):
            file.write(to_json(demonstration) + b"\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    from contracts.clock import SystemClock
    from contracts.codec import to_json
    from contracts.ids import uuid7_ids
    from contracts.settings import Kafka
    from simulator.product import make_product
    from simulator.run import Options, Run

    clock = SystemClock()
    asked = Options(
        gateway=options.gateway,
        kafka=Kafka(bootstrap=options.kafka, prefix=options.prefix),
        model=options.model,
        interactions=options.interactions,
        concurrency=options.concurrency,
        seed=options.seed,
        truth=options.truth,
        rate=options.rate,
        population=options.population,
        key=os.environ.get(API_KEY, ""),
    )
    product = make_product(options.users, _data(options))
    summary = asyncio.run(Run(product, asked, clock, uuid7_ids(clock)).start())
    print(to_json(summary).decode())
    return FAILED if summary.failed_requests or summary.failed_feedback else 0


if __name__ == "__main__":
    sys.exit(main())
