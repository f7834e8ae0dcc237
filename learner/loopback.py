"""Where the processes of a learner meet when all of them are on one machine: on its loopback alone.

torch's own store listens on all interfaces and asks nobody who they are, and gloo listens on
whatever address the machine's name stands for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # it has no __all__
from torch.distributed.rendezvous import rendezvous

ADDRESS = "127.0.0.1"
_NAMES = ("lo", "lo0")


def on_one_machine(environment: Mapping[str, str]) -> bool:
    """Return whether torchrun says so."""
    return environment.get("LOCAL_WORLD_SIZE") == environment.get("WORLD_SIZE")


def stay_inside() -> None:
    """Have gloo listen on the loopback, unless told where to."""
    names = {name for _, name in socket.if_nameindex()}
    for name in _NAMES:
        if name in names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def meet(rank: int, size: int, timeout: timedelta) -> Store:
    """Return a store of these processes that listens on the loopback.

    Where torchrun has a store of its own already, that one holds the port which rank 0 has found;
    else ``MASTER_PORT`` is free.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return _store(rank, size, int(os.environ["MASTER_PORT"]), timeout)
    told, _, _ = next(rendezvous("env://", timeout=timeout))
    place = f"headrace/port/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if rank:
        return _store(rank, size, int(told.get(place)), timeout)
    store = _store(rank, size, 0, timeout)
    told.set(place, str(store.port))
    return store


def _store(rank: int, size: int, port: int, timeout: timedelta) -> TCPStore:
    if rank:
        return TCPStore(ADDRESS, port, size, False, timeout)
    with socket.create_server((ADDRESS, port)) as server:
        found = server.getsockname()[1]
        descriptor = server.detach()  # the store closes it
    return TCPStore(
        *(ADDRESS, found, size, True, timeout),
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )
