"""What does an update cost? Ours and TRL's on the same batch, and the matrix products alone.

``python -m benchmarks.learner [--peers DIR] [--model DIR]`` writes
``benchmarks/results/learner.json`` and prints its table; ``--table`` prints what is there. A tiny
Llama is made on the spot; ``--model`` is a directory with SmolLM2-135M. Contestants are processes
of one thread that take turns: each does one update when it is told to. A ``step`` is a forward and
a backward pass on given advantages, a ``whole`` update all that the learner does by default, with
an anchor and two inner epochs. CPU seconds are those of the process; the ceiling is the fastest
matrix products of the same run. Memory is that of the process, and that less its libraries. The
first update is not timed: there loss and gradient norm of all have to be the same in float32. Where
TRL is not installed, the commands that install it are printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from benchmarks.learner_work import Work, ceiling_seconds, scoring_work, step_work
from benchmarks.learner_workload import (
    EPOCHS,
    LOADS,
    TINY,
    Order,
    Row,
    Size,
    draw,
    make_llama,
    size_of,
    tokens,
)
from benchmarks.loop import RESULTS, ROOT, commit, machine

FILE = RESULTS / "learner.json"
TRL = "1.16.0"
INSTALL = f"""python3.11 -m venv PEERS
PEERS/bin/pip install torch==2.13.0 transformers==5.17.0 peft~=0.21.0 datasets==5.2.0 trl=={TRL}"""
INSTALL_ON_CPU = f"{INSTALL} \\\n    --extra-index-url https://download.pytorch.org/whl/cpu"
KINDS, DTYPES = ("step", "whole"), ("float32", "bfloat16")
SAME = 0.01
"""How far apart loss and gradient norm of the first update may be in float32, as a part of TRL's.

A whole update tells those of its second inner epoch, and the optimizer's first step goes as far
where a gradient is rounding alone as where it is large."""


class Contestant(Struct, frozen=True):
    """A process that takes turns; ``micro_batch`` is the peer's, 0 as many as ours in a pass."""

    name: str
    module: str
    micro_batch: int = 0
    checkpointing: bool = False


OURS = Contestant("Headrace", "benchmarks.learner_ours")
PEERS = (
    Contestant(f"TRL {TRL}", "benchmarks.learner_trl"),
    Contestant(f"TRL {TRL}, as it comes", "benchmarks.learner_trl", 8, checkpointing=True),
)


def main() -> int:
    """Measure and print the table."""
    options = _options()
    if not options.table:
        given = {n: v for n, v in vars(options).items() if n not in ("table", "out", "peers")}
        given["model"] = options.model and options.model.resolve().name
        origin = {"machine": machine(), "commit": commit(), "options": given}
        result = {**origin, "updates": measure(options)}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    kept = msgspec.json.decode(options.out.read_bytes())
    print(table(kept), first_table(kept), sep="\n\n")
    if options.peers is None and not options.table:
        print(
            f"\nTRL was left out. To measure it too, install it and give --peers:\n{INSTALL_ON_CPU}"
        )
    return 0


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of every model, kind of update and number format."""
    found = []
    with TemporaryDirectory() as folder:
        models = {"tiny": make_llama(Path(folder) / "tiny", TINY)}
        if options.model:
            models["smollm2"] = options.model
        for name in [name for name in models if name in options.only]:
            batch = _batch(name, models[name], options.seed, Path(folder))
            for kind in options.kinds:
                for dtype in options.dtypes:
                    print(f"{name}, {kind}, {dtype}", file=sys.stderr)
                    taken = contest(models[name], batch, kind, dtype, options)
                    found.append({"model": name, "kind": kind, "dtype": dtype, **taken})
    return found


def _batch(name: str, model: Path, seed: int, folder: Path) -> Path:
    from benchmarks.learner_ours import with_logprobs

    path = folder / f"{name}.json"
    drawn = draw(LOADS[name], size_of(model).vocabulary, seed)
    path.write_bytes(msgspec.json.encode(with_logprobs(drawn, model, seed)))
    return path


def contest(
    model: Path, batch: Path, kind: str, dtype: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Let the contestants take turns; return what each took, round by round, and the ceiling."""
    rows = msgspec.json.decode(batch.read_bytes(), type=list[Row])
    order = Order(model=str(model), batch=str(batch), dtype=dtype, kind=kind, seed=options.seed)
    field = [OURS, *(PEERS if options.peers else ())]
    taken: dict[str, list[dict[str, float]]] = {one.name: [] for one in field}
    rates = []
    with ExitStack() as stack:
        ceiling = stack.enter_context(process(OURS, replace(order, kind="ceiling"), options.peers))
        processes = {}
        for one in field:
            micro = one.micro_batch or at_once(rows, order.bucket_tokens)
            told = replace(order, micro_batch=micro, checkpointing=one.checkpointing)
            processes[one.name] = stack.enter_context(process(one, told, options.peers))
        for number in range(options.rounds + 1):
            for name in list(processes)[:: 1 if number % 2 else -1]:
                figures = turn(processes[name])
                print(f"{number}/{options.rounds} {name}: {figures}", file=sys.stderr)
                taken[name].append(figures)
            if dtype == "float32":
                check_same(taken)
            if number:
                rates.append(turn(ceiling)["rates"])
    everything, scored, padded = tokens(rows)
    return {
        "rows": len(rows),
        "tokens": everything,
        "scored": scored,
        "padded": padded,
        "work": msgspec.to_builtins(_work(size_of(model), everything, scored, kind)),
        "rates": rates,
        "contestants": taken,
    }


def at_once(rows: list[Row], pass_tokens: int) -> int:
    """Return how many padded answers come nearest to ``pass_tokens`` and leave no rest."""
    padded = tokens(rows)[2] / len(rows)
    parts = [size for size in range(1, len(rows) + 1) if len(rows) % size == 0]
    return min(parts, key=lambda size: abs(size - pass_tokens / padded))


def check_same(taken: dict[str, list[dict[str, float]]]) -> None:
    """RuntimeError when a contestant's first update is not that of the others."""
    for name, others in taken.items():
        for figure in ("loss", "grad_norm"):
            ours, theirs = taken[OURS.name][0][figure], others[0][figure]
            if abs(ours - theirs) > SAME * abs(theirs):
                raise RuntimeError(
                    f"{OURS.name} and {name} do not learn the same: the first {figure} is {ours} "
                    f"and {theirs}, and may be {SAME:.0%} apart; compare losses and settings of "
                    f"{OURS.module} and benchmarks.learner_trl"
                )


def _work(size: Size, everything: int, scored: int, kind: str) -> Work:
    """Return the operations of an update: of its steps, and of scoring by the anchor."""
    step = step_work(size, everything, scored)
    if kind == "step":
        return step
    anchor = scoring_work(size, everything, scored)
    return Work(EPOCHS * step.forward + anchor.forward, EPOCHS * step.backward)


@contextmanager
def process(one: Contestant, order: Order, peers: Path | None) -> Iterator[subprocess.Popen[str]]:
    """Run a contestant until the block ends; its standard input closed, it ends by itself."""
    python = str(peers / "bin" / "python") if one is not OURS and peers else sys.executable
    process = subprocess.Popen(
        [python, "-m", one.module, msgspec.json.encode(order).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def turn(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Say the word and return what the turn took; RuntimeError when the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}")
    found: dict[str, Any] = msgspec.json.decode(line)
    return found


def table(found: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    heading = (
        *("model, update, format", "contestant", "CPU s", "tokens per CPU-second"),
        *("times TRL", "of the ceiling", "of torch.mm", "peak MB", "of TRL's"),
        *("MB for the update", "of TRL's"),
    )
    lines = [f"| {' | '.join(heading)} |", f"{'|---' * len(heading)}|"]
    lines += [
        f"| {' | '.join(_cells(update, name))} |"
        for update in found["updates"]
        for name in update["contestants"]
    ]
    return "\n".join(lines)


def first_table(found: dict[str, Any]) -> str:
    """Return what all say of their first update as a Markdown table."""
    heading = ("first update", "contestant", "loss", "gradient norm")
    lines = [f"| {' | '.join(heading)} |", f"{'|---' * len(heading)}|"]
    lines += [
        f"| {_title(update)} | {name} | {taken[0]['loss']:.3f} | {taken[0]['grad_norm']:.3f} |"
        for update in found["updates"]
        for name, taken in update["contestants"].items()
    ]
    return "\n".join(lines)


def _title(update: dict[str, Any]) -> str:
    return f"{update['model']}, {update['kind']}, {update['dtype']}"


def _cells(update: dict[str, Any], name: str) -> list[str]:
    taken, peer = update["contestants"][name], update["contestants"].get(PEERS[0].name)
    timed = [one["cpu_seconds"] for one in taken[1:]]
    work = msgspec.convert(update["work"], Work)
    shares = [
        median(ceiling_seconds(work, rates, way) for rates in update["rates"]) / median(timed)
        for way in ("", "mm")
    ]
    peak, used = (max(_memory(one)[place] for one in taken) for place in (0, 1))
    ratios = ["-"] * 3
    if peer:
        pairs = zip(peer[1:], taken[1:], strict=True)
        others = [max(_memory(one)[place] for one in peer) for place in (0, 1)]
        ratios = [
            _spread([b["cpu_seconds"] / a["cpu_seconds"] for b, a in pairs], 2),
            f"{peak / others[0]:.2f}",
            f"{used / others[1]:.2f}",
        ]
    return [
        _title(update),
        name,
        _spread(timed, 3),
        f"{update['tokens'] / median(timed):,.0f}",
        ratios[0],
        *(f"{100 * share:.0f} %" for share in shares),
        f"{peak:,.0f}",
        ratios[1],
        f"{used:,.0f}",
        ratios[2],
    ]


def _memory(figures: dict[str, float]) -> tuple[float, float]:
    """Return the peak, and what it is above the process that has loaded nothing but libraries."""
    return figures["peak_mb"], figures["peak_mb"] - figures["libraries_mb"]


def _spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--model", type=Path, metavar="DIR", help="SmolLM2-135M, safetensors")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="virtual environment with TRL")
    parser.add_argument("--only", nargs="+", choices=list(LOADS), default=list(LOADS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print the table only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
