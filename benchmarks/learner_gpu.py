"""What does an update cost on a GPU? Tokens per second and peak memory, ours and TRL's.

``python -m benchmarks.learner_gpu [--peers DIR]`` needs a CUDA GPU; ``--device cpu`` with small
numbers only shows that the program runs. A Llama of 0.6 billion random weights (28 blocks of width
1024, 16 heads of 128 dimensions on 8 key heads, a vocabulary of 151,936) learns with adapters of
rank 16 from answers of the length asked for, half of it a prompt. A step is a forward and a
backward pass and the optimizer's step, bfloat16; TRL has as many tokens in a pass as we have. It
writes ``benchmarks/results/learner_gpu.json``.

prime-rl publishes 13,342 tokens/s and 5.1 GiB for such a model on one H100, with sequences of
16,384 tokens and activations computed again (its benchmarks/baselines/benchmark-1xh100-Qwen--
Qwen3-0.6B-rl-16-1gpu-Recompute-flash_attention_3-16384-cp1-ep1.json of 2026-01-15): the row of
2x16384 with these is to be held beside it. The exit status is 1 where ours failed.
The operations of attention grow with the length: 16 answers of 1,024 have a sixteenth of them.
"""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from benchmarks.learner import INSTALL, OURS, PEERS, at_once, process, turn
from benchmarks.learner_workload import (
    TINY,
    Load,
    Order,
    Row,
    draw,
    make_llama,
    tokens,
)
from benchmarks.loop import RESULTS, commit, machine

FILE = RESULTS / "learner_gpu.json"
RANK: Literal[16] = 16
BATCHES = [(2, 16_384), (2, 8192), (16, 1024)]
SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 1 << 17,
}


def main() -> int:
    """Measure and print the table."""
    options = _options()
    if not options.table:
        given = {n: v for n, v in vars(options).items() if n not in ("table", "out", "peers")}
        origin = {"machine": machine(), "commit": commit(), "options": given}
        result = {**origin, "gpu": _gpu(options.device), "batches": measure(options)}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    kept = msgspec.json.decode(options.out.read_bytes())
    print(table(kept))
    if options.peers is None and not options.table:
        print(f"\nTRL was left out. To measure it too, install it and give --peers:\n{INSTALL}")
    taken = [one["contestants"] for one in kept["batches"]]
    ours = [turns for one in taken for name, turns in one.items() if name.startswith(OURS.name)]
    return 0 if all(ours) else 1


def _gpu(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "none"


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of every batch: so many answers of so many tokens each."""
    found = []
    with TemporaryDirectory() as folder:
        shape = SHAPE if options.device == "cuda" else TINY
        model = make_llama(Path(folder) / "model", shape, "bfloat16")
        for rows, length in options.batches:
            half = length // 2
            load = Load(rows, (half, half), (length - half, length - half))
            drawn = _logged(draw(load, 4096, 0), shape["vocab_size"])
            batch = Path(folder) / f"{rows}x{length}.json"
            batch.write_bytes(msgspec.json.encode(drawn))
            taken = _contest(model, batch, drawn, options)
            found.append({"batch": f"{rows}x{length}", "tokens": tokens(drawn)[0], **taken})
    return found


def _logged(drawn: list[Row], vocabulary: int) -> list[Row]:
    """Return answers as an engine with random weights would have logged them."""
    even = -math.log(vocabulary)
    return [msgspec.structs.replace(one, logprobs=[even] * len(one.response)) for one in drawn]


def _contest(
    model: Path, batch: Path, drawn: list[Row], options: argparse.Namespace
) -> dict[str, Any]:
    order = Order(
        model=str(model),
        batch=str(batch),
        dtype="bfloat16",
        kind="step",
        lora_rank=RANK,
        bucket_tokens=options.pass_tokens,
        device=options.device,
    )
    field = [(f"{OURS.name}{how}", OURS, again) for how, again in _WAYS]
    if options.peers:
        field += [(f"{PEERS[0].name}{how}", PEERS[0], again) for how, again in _WAYS]
    taken: dict[str, Any] = {}
    for name, contestant, again in field:  # one after another: each has the memory to itself
        told = replace(order, checkpointing=again, micro_batch=at_once(drawn, options.pass_tokens))
        with ExitStack() as stack:
            running = stack.enter_context(process(contestant, told, options.peers))
            try:
                taken[name] = [turn(running) for _ in range(options.rounds + 1)]
            except RuntimeError as error:
                taken[name] = []
                print(f"{name}: {error}", file=sys.stderr)
    return {"contestants": taken}


_WAYS = (("", False), (", activations recomputed", True))


def table(found: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    heading = (
        *("answers x tokens", "contestant", "tokens/s", "peak GiB on the GPU"),
        *("first loss", "first gradient norm"),
    )
    lines = [f"| {' | '.join(heading)} |", f"{'|---' * len(heading)}|"]
    for batch in found["batches"]:
        for name, taken in batch["contestants"].items():
            figures = ("failed", "-", "-", "-")
            if taken:
                seconds = median(one["wall_seconds"] for one in taken[1:])
                peak = max(one.get("gpu_mb", 0.0) for one in taken) / 1024
                loss, norm = (f"{taken[0][figure]:.3f}" for figure in ("loss", "grad_norm"))
                figures = (f"{batch['tokens'] / seconds:,.0f}", f"{peak:.1f}", loss, norm)
            lines.append(f"| {batch['batch']} | {name} | {' | '.join(figures)} |")
    return "\n".join(lines)


def batch_of(text: str) -> tuple[int, int]:
    """Return how many answers of how many tokens ``NxM`` says; ArgumentTypeError when nothing."""
    rows, _, length = text.partition("x")
    if not (rows.isdecimal() and length.isdecimal() and int(rows) >= 1 and int(length) >= 2):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NxM, N answers (1 or more) of M tokens (2 or more), such as 16x1024"
        )
    return int(rows), int(length)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="virtual environment with TRL")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batches", nargs="+", type=batch_of, metavar="NxM", default=BATCHES)
    parser.add_argument("--pass-tokens", type=int, default=16384, help="of ours, at most")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print the table only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
