"""What does a swap cost those who are being answered? Swaps of adapters under steady streams.

``python -m benchmarks.swap [--engine vllm|transformers] [--swaps 100]`` writes
``benchmarks/results/swap.json`` and prints its table; ``--table`` prints what is there. Once the
streams go to the engine itself, once through the gateway. Every version says one token of its own
and no other, so an answer that two versions made would show. A version is unloaded as soon as the
engine's door lets it go: when none of its answers is under way.

The model is an untrained Llama of a million weights unless ``--model`` names another directory.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from tqdm import tqdm

from benchmarks.loop import RESULTS, commit, machine
from benchmarks.swap_load import EngineFront, Figures, GatewayFront, measure
from benchmarks.swap_servers import ADMIN_KEY, engine, gateway
from benchmarks.swap_versions import Marked, make_model, make_versions
from serving.http_engine import HttpEngine

FILE = RESULTS / "swap.json"
TIMEOUT_SECONDS = 120.0
LARGEST_READY_MS = 50.0


def main() -> int:
    """Measure and print the table; 1 when an answer failed, broke off or was of two versions."""
    options = _options()
    if not options.table:
        given = {n: str(v) for n, v in vars(options).items() if n not in ("table", "out")}
        origin = {"machine": machine(), "commit": commit(), "options": given}
        with TemporaryDirectory() as folder:
            figures = _measured(options, Path(folder))
        result = {**origin, "through": figures}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    found = msgspec.json.decode(options.out.read_bytes())
    print(table(found))
    bad = ("failed", "truncated", "mixed", "freed_while_answering")
    return int(any(of_it[name] for of_it in found["through"].values() for name in bad))


def _measured(options: argparse.Namespace, folder: Path) -> dict[str, Figures]:
    model = options.model or make_model(folder / "model")
    versions = make_versions(model, folder / "versions", options.swaps + 1)
    found = {}
    with engine(options.engine, model, folder) as url:
        found["engine"] = _run(url, EngineFront, versions, options)
        with gateway(url, folder) as (address, tell):

            def front(_engine: HttpEngine, _versions: Sequence[Marked]) -> GatewayFront:
                return GatewayFront(address, tell)

            found["gateway"] = _run(url, front, versions, options)
    return found


def _run(url: str, make_front: Any, versions: list[Marked], options: argparse.Namespace) -> Figures:
    async def run() -> Figures:
        admin = HttpEngine(url, TIMEOUT_SECONDS, admin_key=ADMIN_KEY)
        front = make_front(admin, versions)
        with tqdm(total=len(versions) - 1, desc="swaps", file=sys.stderr) as bar:
            found = await measure(
                front,
                admin,
                versions,
                streams=options.streams,
                tokens=options.tokens,
                calm=options.calm,
                shown=bar.update,
            )
        if isinstance(front, GatewayFront):
            await front.close()
        await admin.close()
        return found

    return asyncio.run(run())


def table(found: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    names = (
        "streams go through",
        "swaps",
        "answers",
        "failed",
        "truncated",
        "of two versions",
        "freed while answering",
        "adapter ready, ms p50 / p99 / max",
        f"ready within {LARGEST_READY_MS:.0f} ms",
        "first token, ms p99 without / with swaps",
        "tokens/s without / with swaps",
    )
    rows = [f"| {' | '.join(names)} |", f"{'|---' * len(names)}|"]
    for through, of_it in found["through"].items():
        ready, calm = of_it["ready_ms"], of_it["first_token_ms_without"]
        within = sum(value <= LARGEST_READY_MS for value in ready)
        quantiles = (quantile(ready, 0.5), quantile(ready, 0.99), max(ready))
        p99 = (quantile(calm, 0.99), quantile(of_it["first_token_ms_with"], 0.99))
        rate = (of_it["tokens_per_second_without"], of_it["tokens_per_second_with"])
        cells = [
            through,
            *(str(of_it[n]) for n in ("swaps", "requests", "failed", "truncated", "mixed")),
            str(of_it["freed_while_answering"]),
            " / ".join(f"{value:.1f}" for value in quantiles),
            f"{within} of {len(ready)}",
            " / ".join(f"{value:.0f}" for value in p99),
            " / ".join(f"{value:.0f}" for value in rate),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", str(found["options"])])


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-len(ordered) * share // 1) - 1))]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap", description=__doc__)
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--model", type=Path, metavar="DIR")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="in every answer")
    parser.add_argument("--calm", type=int, default=400, help="answers before and after the swaps")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print the table only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
