"""What vLLM loads from the system, on a system that lacks it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from console import system_libraries
from console.system_libraries import (
    lacking_libraries,
    library_path,
    loader_environment,
    unpack_lacking,
)

NOBODYS = "libheadrace-needs-this.so.1"


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_libraries, "NEEDED", {NOBODYS: "headrace-no-such-package"})


@pytest.mark.usefixtures("lacking")
def test_a_library_that_nobody_has_ends_set_up_with_the_cure(tmp_path: Path) -> None:
    assert lacking_libraries(tmp_path) == {NOBODYS: "headrace-no-such-package"}
    with pytest.raises(SystemExit, match="apt-get install headrace-no-such-package"):
        unpack_lacking(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("lacking")
def test_an_unpacked_library_lacks_no_more_and_programs_are_told_where_it_is(
    tmp_path: Path,
) -> None:
    assert loader_environment(tmp_path) == {}
    library_path(tmp_path).mkdir()
    (library_path(tmp_path) / NOBODYS).touch()
    assert lacking_libraries(tmp_path) == {}
    assert loader_environment(tmp_path)["LD_LIBRARY_PATH"].split(":")[0] == str(
        library_path(tmp_path)
    )


def test_a_library_is_taken_out_of_a_debian_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb here")
    content, programs = tmp_path / "content", tmp_path / "programs"
    control = content / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: libthing1\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: -\n"
    )
    library = content / "usr" / "lib" / "x86_64-linux-gnu" / NOBODYS
    library.parent.mkdir(parents=True)
    library.write_bytes(b"a library")
    programs.mkdir()
    fetch = programs / "apt-get"
    fetch.write_text(f'#!/bin/sh\n[ "$1" = download ] && dpkg-deb -b {content} $2.deb\n')
    fetch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(system_libraries, "NEEDED", {NOBODYS: "libthing1"})
    environment = tmp_path / "environment"
    environment.mkdir()
    unpack_lacking(environment)
    assert (library_path(environment) / NOBODYS).read_bytes() == b"a library"
    assert [path.name for path in environment.iterdir()] == [library_path(environment).name]
