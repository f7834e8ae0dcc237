"""Joins the processes that torchrun started, and says where each of them, and torchrun, listens."""

from __future__ import annotations

import os

import psutil
import torch.distributed as dist
from msgspec import Struct

from contracts.codec import to_json
from learner.ranks import join


class Sockets(Struct, frozen=True):
    """Addresses that a process listens at, and the ports that it is connected to."""

    listens: list[str] = []
    connected: list[int] = []


class Told(Struct, frozen=True):
    """The sockets of one process and of torchrun, which told it to meet at a port."""

    mine: Sockets
    agents: Sockets
    met_at: int
    interface: str


def of(process: psutil.Process) -> Sockets:
    """Return the sockets of a process."""
    found = process.net_connections("inet")
    return Sockets(
        [one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN],
        [one.raddr.port for one in found if one.status == psutil.CONN_ESTABLISHED],
    )


def main() -> None:
    """Print what is so once all have met."""
    ranks = join()
    dist.barrier()
    me = psutil.Process()
    parent = me.parent()
    assert parent is not None
    port, interface = int(os.environ["MASTER_PORT"]), os.environ.get("GLOO_SOCKET_IFNAME", "")
    print(to_json(Told(of(me), of(parent), port, interface)).decode(), flush=True)
    dist.barrier()
    ranks.leave()


if __name__ == "__main__":
    main()
