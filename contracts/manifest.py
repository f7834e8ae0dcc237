"""The manifest of a policy version: what it is made of, and what it was trained on.

A version is a directory with weights in safetensors and one ``manifest.json``. Its id is the sha256
of the manifest's bytes, and the manifest holds the sha256 of every other file, so the id pins all.
Beside it lies ``manifest.sig``, the learner's signature, which the id does not depend on.
"""

from __future__ import annotations

import os
import stat
from datetime import datetime
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from contracts.errors import ManifestError
from contracts.signing import (
    MAX_SIGNATURE_BYTES,
    SIGNATURE_NAME,
    TrustedKeys,
    check_signature,
    sign,
)

MANIFEST_NAME = "manifest.json"
SHOWN_CHARS = 300
_FORBIDDEN_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


class OffsetRange(Struct, frozen=True, kw_only=True):
    """Records ``first`` to ``next - 1`` of one partition."""

    topic: str
    partition: int
    first: int
    next: int


class Manifest(Struct, frozen=True, kw_only=True):
    """What a version is; ``as_of`` is the event time of the newest sample in it.

    ``samples`` is how many newly rated ones taught it since its parent; ``users`` how many people's
    taught it at all, corrections and what broke a rule in silence included, None where that was
    not counted; the oldest feedback is that of rated samples. ``state`` is the sha256 of
    the learner's state that it was published with, by which one can learn on from it.
    """

    format: Literal[1] = 1
    policy: str
    sequence: int
    form: Literal["lora", "full", "reward-model"]
    base: str
    parent: str
    as_of: datetime
    newest_feedback_time: datetime
    oldest_feedback_time: datetime | None = None
    trained_on: tuple[OffsetRange, ...]
    samples: int
    users: int | None = None
    config: dict[str, Any]
    code: str
    state: str = ""
    files: dict[str, str]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """Return relative path to sha256 of every file but manifest and signature, sorted.

    Raises ManifestError for anything that is neither a regular file nor a real folder, and OSError.
    """
    own = {directory / MANIFEST_NAME, directory / SIGNATURE_NAME}
    return {
        path.relative_to(directory).as_posix(): file_sha256(path)
        for path in _regular_files(directory)
        if path not in own
    }


def _regular_files(directory: Path) -> list[Path]:
    """Return every file below, sorted; a link could point elsewhere by the time of the load."""
    files = []
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            files.append(path)
        elif not stat.S_ISDIR(mode):
            raise ManifestError(
                f"{_shown(path)} is neither a regular file nor a folder (a link, a pipe?); "
                "copy the file itself and publish the version again"
            )
    return files


def write_manifest(directory: Path, manifest: Manifest) -> str:
    """Write ``manifest.json`` (fsynced) and return the version's id."""
    raw = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2)
    _write(directory / MANIFEST_NAME, raw)
    return sha256(raw).hexdigest()


def sign_manifest(directory: Path, key: Ed25519PrivateKey) -> None:
    """Write ``manifest.sig`` (fsynced) for the manifest that is there."""
    _write(directory / SIGNATURE_NAME, sign((directory / MANIFEST_NAME).read_bytes(), key))


def read_manifest(directory: Path) -> tuple[str, Manifest]:
    """Return (id, manifest) of a version directory, without checking its files.

    Raises ManifestError, whatever ``directory`` is.
    """
    path = directory / MANIFEST_NAME
    try:
        raw = path.read_bytes() if path.is_file() else None  # a pipe would wait for its writer
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if raw is None:
        raise ManifestError(f"{_shown(path)} is missing or no file; publish the version again")
    try:
        return sha256(raw).hexdigest(), msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{_shown(path)} is not a manifest: {error}") from error


def read_pinned(directory: Path, manifest: Manifest, name: str) -> bytes:
    """Return what is in a file of a version.

    Raises ManifestError unless it is the file that the manifest has the hash of.
    """
    path = directory / name
    try:
        raw = path.read_bytes() if path.is_file() else None  # a pipe would wait for its writer
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if raw is None or sha256(raw).hexdigest() != manifest.files.get(name):
        raise ManifestError(
            f"{_shown(path)} is missing or differs from the manifest; put it back from a copy"
        )
    return raw


def verify(directory: Path, version: str) -> Manifest:
    """Check a version directory against its id and return its manifest; who signed is not asked.

    Raises ManifestError when the id, a hash or the set of files differs, when something cannot be
    read, when anything is neither a regular file nor a real folder, or when a file could hold
    pickled code: weights are safetensors only.
    """
    found, manifest = read_manifest(directory)
    if found != version:
        raise ManifestError(f"{directory} has manifest {found}, expected {version}; do not load it")
    unsafe = [name for name in manifest.files if Path(name).suffix.lower() in _FORBIDDEN_SUFFIXES]
    if unsafe:
        raise ManifestError(f"{directory} holds {unsafe}; only safetensors weights are loaded")
    try:
        actual = hash_files(directory)
    except (OSError, ValueError) as error:
        raise _unreadable(directory, error) from error
    wrong = sorted(
        name
        for name in manifest.files.keys() | actual.keys()
        if manifest.files.get(name) != actual.get(name)
    )
    if wrong:
        raise ManifestError(f"{directory}: {wrong} differ from the manifest; do not load it")
    return manifest


def verify_signed(directory: Path, version: str, trusted: TrustedKeys) -> Manifest:
    """Check a version directory and that a trusted key signed it: before every load.

    Raises ManifestError as `verify` does, and for a missing, wrong or unknown signature.
    """
    manifest = verify(directory, version)
    path = directory / SIGNATURE_NAME
    try:
        raw = (directory / MANIFEST_NAME).read_bytes()
        signed = path.read_bytes() if path.is_file() else None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if signed is None:
        raise ManifestError(f"{_shown(path)} is missing: unsigned versions are not loaded")
    if len(signed) > MAX_SIGNATURE_BYTES or sha256(raw).hexdigest() != version:
        raise ManifestError(f"{_shown(path)} or the manifest changed; publish the version again")
    try:
        check_signature(raw, signed, trusted)
    except ManifestError as error:
        raise ManifestError(f"{_shown(directory)}: {error}") from error
    return manifest


def _write(path: Path, raw: bytes) -> None:
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _unreadable(path: Path, error: OSError | ValueError) -> ManifestError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ManifestError(f"{_shown(path)} cannot be read: {why}; publish the version again")


def _shown(path: Path) -> str:
    """Return the path for a message: it came with a record, and may be anything."""
    text = str(path)
    return text if text.isprintable() and len(text) <= SHOWN_CHARS else repr(text[:SHOWN_CHARS])
