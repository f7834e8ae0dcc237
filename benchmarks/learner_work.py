"""How many floating-point operations an update needs; knows no torch."""

from __future__ import annotations

from msgspec import Struct

from benchmarks.learner_workload import LORA_RANK, Size


class Product(Struct, frozen=True):
    """A linear layer on so many rows; ``to_input``: its input needs a gradient."""

    rows: int
    into: int
    out: int
    to_input: bool = True


class Work(Struct, frozen=True):
    """Floating-point operations of products forward and backward."""

    forward: float
    backward: float


def products(size: Size, tokens: int, scored: int) -> list[tuple[Product, bool]]:
    """Return the layers that a pass needs, and whether each has adapters.

    In the last block only scored tokens go on behind the attention, and only they reach the head.
    """
    found = []
    for place in range(size.depth):
        behind = scored if place == size.depth - 1 else tokens
        shapes = [(tokens, size.hidden, out) for out in (size.attention, size.narrow, size.narrow)]
        shapes += [(behind, size.attention, size.hidden)]
        shapes += [(behind, size.hidden, size.middle)] * 2 + [(behind, size.middle, size.hidden)]
        for number, shape in enumerate(shapes):
            found.append((Product(*shape, to_input=place > 0 or number > 2), True))
    return [*found, (Product(scored, size.hidden, size.vocabulary), False)]


def step_work(size: Size, tokens: int, scored: int) -> Work:
    """Return the operations of a forward and a backward pass: those of base, adapters and head.

    The base has no gradient of its weights; adapters have all three products. Attention is left
    out.
    """
    forward = backward = 0.0
    for one, adapted in products(size, tokens, scored):
        plain = 2.0 * one.rows * one.into * one.out
        adapter = 2.0 * one.rows * LORA_RANK * (one.into + one.out) * adapted
        forward += plain + adapter
        backward += plain * one.to_input + 2.0 * adapter
    return Work(forward, backward)


def scoring_work(size: Size, tokens: int, scored: int) -> Work:
    """Return the operations of a forward pass of the base alone."""
    layers = products(size, tokens, scored)
    return Work(sum(2.0 * one.rows * one.into * one.out for one, _ in layers), 0.0)


def ceiling_seconds(work: Work, measured: dict[str, dict[str, float]], way: str = "") -> float:
    """Return the CPU seconds of work that were nothing but products, by one way or the fastest."""
    forward, backward = (
        measured[direction][way] if way else max(measured[direction].values())
        for direction in ("forward", "backward")
    )
    return work.forward / forward + work.backward / backward
