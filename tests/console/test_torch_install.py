"""Which build of torch set-up asks pip for; no CUDA package comes onto a machine without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from console import environments
from console.environments import TORCH, install_torch, pulls_cuda, stamp_of

CPU_ONLY = ("torch", "filelock", "sympy", "networkx")
NOBODY = "http://127.0.0.1:9"
PLAIN, CPU = f"-m pip install {TORCH}", f"-m pip install {TORCH}+cpu"
LOOK = f"-m pip install --dry-run --quiet --report - {TORCH}"

# Writes down what it is called with; it has torch by the name of its CPU build if `cpu` is there.
PYTHON = """#!/bin/sh
cd "$(dirname "$0")" || exit 9
echo "$*" >> calls
case "$*" in
*--dry-run*) cat report ;;
*+cpu*) test -f cpu ;;
esac
"""


def _report(*names: str) -> str:
    """Return an installation report as pip writes it to standard output."""
    install: list[dict[str, Any]] = [
        {
            "download_info": {"url": f"https://files.example/{name}.whl", "archive_info": {}},
            "is_direct": False,
            "is_yanked": False,
            "requested": name == "torch",
            "metadata": {"metadata_version": "2.4", "name": name, "version": "1.0"},
        }
        for name in names
    ]
    return json.dumps({"version": "1", "pip_version": "26.0", "install": install})


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (CPU_ONLY, False),
        ((*CPU_ONLY, "nvidia-cublas", "triton"), True),
        ((*CPU_ONLY, "nvidia-cudnn-cu13"), True),
        ((*CPU_ONLY, "NVIDIA-NCCL-cu13"), True),
        ((*CPU_ONLY, "cuda-bindings"), True),
        ((*CPU_ONLY, "pytorch-triton"), True),
        ((), False),
    ],
)
def test_a_report_that_names_a_cuda_package_is_told(names: tuple[str, ...], wanted: bool) -> None:
    assert pulls_cuda(_report(*names)) is wanted


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python whose pip does nothing but write down its calls."""
    program = tmp_path / "python"
    program.write_text(PYTHON)
    program.chmod(0o755)
    (tmp_path / "report").write_text(_report(*CPU_ONLY))
    return program


@pytest.fixture
def install(python: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Install torch with that Python; return pip's calls."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def call(*, cpu_only: bool = True, index: str = NOBODY) -> list[str]:
        monkeypatch.setattr(environments, "CPU_INDEX", index)
        install_torch(str(python), cpu_only=cpu_only)
        return (python.parent / "calls").read_text().splitlines()

    return call


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index that has torch."""
    (tmp_path / "index" / "torch").mkdir(parents=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_machine_with_a_gpu_gets_the_plain_build(install: Callable[..., list[str]]) -> None:
    assert install(cpu_only=False) == [PLAIN]


def test_the_cpu_build_comes_from_its_index_where_that_answers(
    install: Callable[..., list[str]], python: Path, index: str
) -> None:
    (python.parent / "cpu").touch()
    assert install(index=index) == [f"{CPU} --extra-index-url {index}"]


def test_the_cpu_build_comes_from_the_usual_index_where_its_own_does_not_answer(
    install: Callable[..., list[str]], python: Path
) -> None:
    (python.parent / "cpu").touch()
    assert install() == [CPU]


def test_the_plain_build_is_taken_when_it_brings_no_cuda(
    install: Callable[..., list[str]],
) -> None:
    assert install() == [CPU, LOOK, PLAIN]


def test_a_plain_build_that_brings_cuda_is_not_installed(
    install: Callable[..., list[str]], python: Path
) -> None:
    (python.parent / "report").write_text(_report(*CPU_ONLY, "nvidia-cublas"))
    with pytest.raises(SystemExit, match="would bring CUDA packages onto a machine without"):
        install()
    assert (python.parent / "calls").read_text().splitlines() == [CPU, LOOK]


def test_a_torch_that_pip_does_not_find_ends_set_up(
    install: Callable[..., list[str]], python: Path
) -> None:
    (python.parent / "report").unlink()
    with pytest.raises(SystemExit, match="cannot be found"):
        install()


def test_the_stamp_follows_the_files_and_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("torch==1\n")
    first = stamp_of(str(pins))
    assert stamp_of(str(pins)) == first
    pins.write_text("torch==2\n")
    second = stamp_of(str(pins))
    monkeypatch.setattr(sys, "version", "3.11.99")
    assert len({first, second, stamp_of(str(pins)), stamp_of()}) == 4
