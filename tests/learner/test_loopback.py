"""Processes of one machine meet where no other machine can reach them."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import msgspec

from learner.loopback import on_one_machine
from tests.learner.sockets import Told

ROOT = Path(__file__).parents[2]
SECONDS = 300.0


def _met(*options: str, **environment: str) -> list[Told]:
    """Let torchrun start two processes; return what each says once they have met."""
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    command += ["--nproc-per-node", "2", "-m", "tests.learner.sockets"]
    inherited = {name: one for name, one in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = done.stdout.replace("}{", "}\n{").splitlines()  # two write into one pipe
    return [msgspec.json.decode(line, type=Told) for line in found if line]


def _inside(addresses: list[str]) -> bool:
    return all(ip_address(one.removeprefix("::ffff:")).is_loopback for one in addresses)


def test_the_processes_listen_on_the_loopback_and_leave_torchruns_port_alone() -> None:
    first, second = _met("--standalone")

    for told in (first, second):
        assert told.mine.listens
        assert _inside(told.mine.listens)
        assert told.met_at not in told.mine.connected
        assert told.interface in {"lo", "lo0"}


def test_with_a_file_for_torchruns_rendezvous_nothing_listens_beyond_the_loopback() -> None:
    options = ("--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file")
    first, second = _met(*options, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    for told in (first, second):
        assert told.mine.listens
        assert _inside([*told.mine.listens, *told.agents.listens])


def test_an_interface_that_was_named_is_used() -> None:
    [first, _] = _met("--standalone", GLOO_SOCKET_IFNAME="lo,lo")

    assert first.interface == "lo,lo"


def test_processes_of_several_machines_meet_as_torchrun_says() -> None:
    assert on_one_machine({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    assert not on_one_machine({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
    assert not on_one_machine({"WORLD_SIZE": "2"})
