"""Shared libraries that vLLM loads from the system and that a small Debian lacks.

They are unpacked from Debian's own packages into the environment, which needs no root. Standard
library only: this runs before anything is installed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NEEDED = {"libnuma.so.1": "libnuma1"}
"""Name of the library to the Debian package that has it."""

FOLDER = "system-libraries"


def library_path(environment: Path) -> Path:
    """Return the folder of libraries unpacked beside an environment's own."""
    return environment / FOLDER


def loads(library: str) -> bool:
    """Return whether the system's loader finds a library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def lacking_libraries(environment: Path) -> dict[str, str]:
    """Return those needed that neither the system nor the environment has, with their packages."""
    folder = library_path(environment)
    return {
        library: package
        for library, package in NEEDED.items()
        if not loads(library) and not (folder / library).exists()
    }


def loader_environment(environment: Path) -> dict[str, str]:
    """Return what a program's environment needs for it to find what was unpacked."""
    folder = library_path(environment)
    if not folder.exists():
        return {}
    return {"LD_LIBRARY_PATH": ":".join(filter(None, (str(folder), os.getenv("LD_LIBRARY_PATH"))))}


def unpack_lacking(environment: Path) -> None:
    """Unpack what lacks; SystemExit with the cure where that is not possible."""
    for library, package in lacking_libraries(environment).items():
        if shutil.which("apt-get") is None or not unpack(library, package, environment):
            raise SystemExit(
                f"setup: vLLM needs {library}, which this system lacks and which could not be "
                f"fetched; install it (on Debian: apt-get update && apt-get install {package}) "
                "and run again"
            )


def unpack(library: str, package: str, environment: Path) -> bool:
    """Fetch a Debian package and copy one library out of it; return whether that worked."""
    folder = library_path(environment)
    with tempfile.TemporaryDirectory(dir=environment) as scratch:
        fetched = subprocess.run(["apt-get", "download", package], cwd=scratch, check=False)
        archives = list(Path(scratch).glob("*.deb"))
        if fetched.returncode != 0 or not archives:
            return False
        content = Path(scratch) / "content"
        subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(content)], check=True)
        found = next(content.rglob(library), None)
        if found is None:
            return False
        folder.mkdir(exist_ok=True)
        shutil.copy(found, folder / library)
    return True
