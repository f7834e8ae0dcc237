"""Directories that appear whole or not at all: write aside, fsync, rename, fsync the parent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

CrashPoint = Callable[[str], None]
"""Called with the name of each place where a crash must do no harm; tests raise there."""

PARTIAL_PREFIX = ".partial-"


def no_crash(name: str) -> None:
    """Go on."""


def appear(target: Path, fill: Callable[[Path], str], crash_point: CrashPoint) -> Path:
    """Fill a directory beside ``target`` and rename it; return where it came to lie.

    ``fill`` writes the files and returns the final name. A directory of that name that is already
    there is left as it is: equal names mean equal content. Crash points: ``inside``, ``renamed``.
    """
    target.mkdir(parents=True, exist_ok=True)
    partial = target / f"{PARTIAL_PREFIX}{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    name = fill(partial)
    for path in partial.iterdir():
        _fsync(path)
    _fsync(partial)
    crash_point("inside")
    final = target / name
    if final.exists():
        shutil.rmtree(partial)
    else:
        partial.rename(final)
        _fsync(target)
    crash_point("renamed")
    return final


def clear_partial(target: Path) -> None:
    """Remove what a crash left unfinished; one process owns a target."""
    for path in target.glob(f"{PARTIAL_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
