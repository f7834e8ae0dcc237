"""Directories that appear whole or not at all: write aside, fsync, rename, fsync the parent.

A signed version is one; and where those of the policy lie.
"""

from __future__ import annotations

import errno
import fcntl
import filecmp
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace
from safetensors import SafetensorError

from contracts.errors import UnavailableError
from contracts.manifest import Manifest, hash_files, sign_manifest, write_manifest
from contracts.settings import Settings

CrashPoint = Callable[[str], None]
"""Called with the name of each place where a crash must do no harm; tests raise there."""

PARTIAL_PREFIX = ".partial-"

_REFUSALS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
        *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE),
    }
)
"""How the system says that a file cannot be written, whoever asks; other faults are our own."""


def no_crash(name: str) -> None:
    """Go on."""


def versions_directory(settings: Settings) -> Path:
    """Return where the versions of the policy lie."""
    return settings.state_dir / "versions" / settings.policy.name


@contextmanager
def owned(settings: Settings) -> Iterator[None]:
    """Own the policy's checkpoints, versions and states as long as the block runs.

    UnavailableError when another process does: each would clear what the other writes aside.
    """
    path = settings.state_dir / "checkpoints" / f"{settings.policy.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnavailableError(
                f"policy {settings.policy.name} in state_dir {settings.state_dir} has a learner "
                f"that is running (it holds {path.name} in {path.parent}); stop that one first, or "
                "give this one another state_dir"
            ) from error
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what to do when the system lets nothing be written at ``path`` or below.

    UnavailableError for a full or broken disk, missing rights and too many open files; other
    faults stay what they are.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if _number(error) not in _REFUSALS:
            raise
        raise UnavailableError(
            f"{path} cannot be written ({error}); free space on its disk, mend it, let this user "
            "write there or raise the limit of open files, and start again: what lies there is "
            "whole, and a learner goes on from its last checkpoint"
        ) from error


def _number(error: OSError | SafetensorError) -> int | None:
    """Return the system's number of a fault; safetensors has it in the text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def appear(target: Path, fill: Callable[[Path], str], crash_point: CrashPoint) -> Path:
    """Fill a directory beside ``target`` and rename it; return where it came to lie.

    ``fill`` writes the files and returns the final name. Equal names mean equal content: what is
    there under that name stays, unless it differs; then a crash has torn it, and the new one takes
    its place. UnavailableError where the system lets nothing be written. Crash points: ``inside``,
    ``renamed``.
    """
    with writing(target):
        return _appear(target, fill, crash_point)


def _appear(target: Path, fill: Callable[[Path], str], crash_point: CrashPoint) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    partial = target / f"{PARTIAL_PREFIX}{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    name = fill(partial)
    for path in partial.iterdir():
        fsync(path)
    fsync(partial)
    crash_point("inside")
    final = target / name
    torn = target / f"{PARTIAL_PREFIX}torn-{os.getpid()}"
    if final.exists() and not _is_equal(partial, final):
        shutil.rmtree(torn, ignore_errors=True)
        final.rename(torn)
    if final.exists():
        shutil.rmtree(partial)
    else:
        partial.rename(final)
        fsync(target)
    shutil.rmtree(torn, ignore_errors=True)
    crash_point("renamed")
    return final


def write_signed(
    target: Path,
    manifest: Manifest,
    key: Ed25519PrivateKey,
    fill: Callable[[Path], None],
    crash_point: CrashPoint = no_crash,
) -> Path:
    """Let a version appear below ``target``, under its id and signed; return where.

    ``fill`` writes its files, whose hashes the manifest gets. Crash points: those of `appear`.
    """

    def fill_and_sign(directory: Path) -> str:
        fill(directory)
        version = write_manifest(directory, replace(manifest, files=hash_files(directory)))
        sign_manifest(directory, key)
        return version

    return appear(target, fill_and_sign, crash_point)


def _is_equal(one: Path, other: Path) -> bool:
    """Tell whether two directories hold the same files, byte for byte."""
    names = [path.name for path in one.iterdir()]
    if sorted(names) != sorted(path.name for path in other.iterdir()):
        return False
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def appeared(target: Path) -> list[Path]:
    """Return what has appeared below ``target``, sorted; what a crash left unfinished has not."""
    return sorted(p for p in target.glob("*") if not p.name.startswith(PARTIAL_PREFIX))


def clear_partial(target: Path) -> None:
    """Remove what a crash left unfinished; one process owns a target."""
    for path in target.glob(f"{PARTIAL_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def fsync(path: Path) -> None:
    """Have the disk hold a file or directory as it is."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
