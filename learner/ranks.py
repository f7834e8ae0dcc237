"""The processes of one learner, as torchrun starts them: what they share, and who leads.

Rank 0 talks to the world. The others hold the same policy and take part in what rank 0 calls: it
sends an order, all run the same function, and inside it each takes a share of the passes. Alone,
all of this is nothing. The processes believe each other, and run no code that was sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from msgspec import Struct
from torch import Tensor, nn

from contracts.errors import HeadraceError
from learner.config_differences import differing
from learner.loopback import meet, on_one_machine, stay_inside
from learner.parcels import broadcast, gather, packed, unpacked
from learner.sign_of_life import SIGN_OF_LIFE, SignOfLife

SECONDS = 900.0
"""Longest silence of another process, after which a wait for it fails. Rank 0 says every minute
that it is there, whatever it does alone."""

Item = TypeVar("Item")
Adapters = Callable[[], Mapping[str, nn.Parameter]]


class RanksError(HeadraceError):
    """The processes of a learner have lost each other, or what they hold differs."""


class Order(Struct, frozen=True):
    """What all are to run: a name, and the arguments; no name: nothing, rank 0 is there.

    Arguments arrive as plain values, tensors and generators; whoever runs the order knows more.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    adapters: dict[str, Tensor] | None = None


STOP = Order("stop")


class Ranks:
    """One process among ``size``; ``sharded`` when the base is spread over them."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.sharded = False
        self._inside = False
        self._known = -1
        self._life = SignOfLife(lambda: self._exchanged(Order("")), SIGN_OF_LIFE)

    @property
    def leads(self) -> bool:
        """Return whether this process talks to the world."""
        return self.rank == 0

    @contextmanager
    def together(
        self, adapters: Adapters, name: str, *arguments: Any, **keywords: Any
    ) -> Iterator[None]:
        """Run the block on all processes: rank 0 sends the order, the others are inside it already.

        Adapters go along when they have changed since the others have seen them.
        """
        if self.size == 1 or self._inside:
            yield
            return
        with self._life.silence():  # messages must not cross
            self._exchanged(Order(name, arguments, keywords, self._changed(adapters())))
            self._inside = True
            try:
                yield
            finally:
                self._inside = False
                self._known = _version(adapters())

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Run the block as a part of an order that was received."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part of what is to be done inside an order: all of it, outside."""
        return list(items[self.rank :: self.size]) if self._inside else list(items)

    def missing(self, count: int) -> int:
        """Return how many fewer of ``count`` items this process has than the one with most."""
        if not self._inside:
            return 0
        return -(-count // self.size) - len(range(self.rank, count, self.size))

    def gathered(self, found: Mapping[int, Item]) -> dict[int, Item]:
        """Return what all processes found, numbers or tensors, on every one of them."""
        if not self._inside or self.size == 1:
            return dict(found)
        parts = self._of_all(dict(found))
        return {key: value for part in parts for key, value in part.items()}

    def total(self, *values: float) -> tuple[float, ...]:
        """Return the sums over all processes, in float64."""
        if not self._inside or self.size == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def add_gradients(self, adapters: Mapping[str, nn.Parameter]) -> None:
        """Give every process the sum of all gradients, reduced in one piece and one order."""
        if not self._inside or self.size == 1:
            return
        parameters = [adapters[name] for name in sorted(adapters)]
        flat = torch.cat([_gradient(one).flatten() for one in parameters])
        dist.all_reduce(flat)
        for one, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            one.grad = part.view_as(one).clone()

    def check_alike(self, given: Mapping[str, Any]) -> None:
        """Raise RanksError unless all processes were given the same to compute with.

        Equal weights do not show it: gradients are summed before the step, whatever each is of.
        """
        if not self._inside or self.size == 1:
            return
        first, *others = self._of_all(dict(given))
        for rank, other in enumerate(others, 1):
            if apart := differing(first, other):
                named = "; ".join(f"{name}: {mine}, there {its}" for name, mine, its in apart)
                raise RanksError(
                    f"process {rank} of {self.size} of the learner would compute with other than "
                    f"process 0, which has {named}; give all of them the same settings, base "
                    "model, hardware and release, and start again"
                )

    def check_equal(self, weights: Mapping[str, Tensor], *others: object) -> None:
        """Raise RanksError unless all processes have the same weights to the last bit, and others
        that print the same."""
        if not self._inside or self.size == 1:
            return
        digest = sha256(repr(others).encode())
        for name in sorted(weights):
            digest.update(weights[name].detach().cpu().numpy().tobytes())
        found = self._of_all(digest.hexdigest())
        if len(set(found)) > 1:
            raise RanksError(
                f"the {self.size} processes of the learner have come to different weights "
                f"({', '.join(one[:8] for one in found)}); give them the same hardware, "
                "learner.threads and release, and start again from the last checkpoint"
            )

    def receive(self) -> Order:
        """Return the next order of rank 0 that is one; RanksError when it is silent for long."""
        while True:
            order = self._exchanged(None)
            if order.name:
                return order

    def stop(self) -> None:
        """Let the others end, and leave."""
        if self.size > 1 and self.leads:
            with self._life.silence():
                self._life.end()
                self._exchanged(STOP)
        self.leave()

    def leave(self) -> None:
        """Give up what connects the processes: its threads must not outlive the interpreter."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def keep_alive(self) -> None:
        """Tell the others from now on that rank 0 is there, from a thread of its own: what it does
        alone, such as drawing answers or waiting for the broker, may take long."""
        if self.size > 1:
            self._life.begin()

    def _of_all(self, mine: Any) -> list[Any]:
        """Return what each process gave, by its rank, as plain values."""
        return [unpacked(one) for one in gather(packed(mine), self.size)]

    def _exchanged(self, order: Order | None) -> Order:
        try:
            data = broadcast(None if order is None else packed(order))
        except RuntimeError as error:
            raise RanksError(
                f"process {self.rank} of {self.size} has lost the others, or heard nothing for "
                f"{SECONDS:.0f} s: {error}"
            ) from error
        found: Order = order or unpacked(data, Order)
        return found

    def _changed(self, adapters: Mapping[str, nn.Parameter]) -> dict[str, Tensor] | None:
        if _version(adapters) == self._known:
            return None
        return {name: one.detach() for name, one in adapters.items()}


ALONE = Ranks()


def join() -> Ranks:
    """Return this process's place among those that torchrun started; alone when it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        rank, timeout = int(os.environ["RANK"]), timedelta(seconds=SECONDS)
        if on_one_machine(os.environ):
            stay_inside()
            store = meet(rank, size, timeout)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=timeout
            )
        else:
            dist.init_process_group(backend, timeout=timeout)
    return Ranks(dist.get_rank(), size)


def shard(blocks: Iterable[nn.Module], device: torch.device, ranks: Ranks) -> None:
    """Spread the frozen weights of blocks over the processes, by FSDP2; adapters stay whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks.size,))
    for block in blocks:
        adapters = {one for one in block.parameters() if one.requires_grad}
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    ranks.sharded = True


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _version(adapters: Mapping[str, nn.Parameter]) -> int:
    """Return a number that grows with every change of the adapters in place."""
    return sum(one._version for one in adapters.values())
