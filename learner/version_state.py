"""What it takes to go on learning from a version: its checkpoint, kept beside the versions.

A version's manifest holds the hash of its state, so the signature covers it. The states kept grow
sparser with age: of the newest ones each, further back every second, every fourth, and so on.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contracts.errors import ManifestError
from contracts.manifest import MANIFEST_NAME, file_sha256, read_manifest, verify
from contracts.settings import Settings
from contracts.signing import SIGNATURE_NAME, sign, signing_key
from learner.checkpoint import STATE, copy_to
from learner.directory import (
    PARTIAL_PREFIX,
    CrashPoint,
    appeared,
    clear_partial,
    fsync,
    versions_directory,
    writing,
)
from learner.progress import Progress
from learner.publish import Published


def states_directory(settings: Settings) -> Path:
    """Return where the states of the policy's versions lie."""
    return settings.state_dir / "states" / settings.policy.name


def keep_state(
    settings: Settings, checkpoint: Path, version: str, progress: Progress, crash_point: CrashPoint
) -> None:
    """Copy the checkpoint that a version was published from, and drop the states that are old.

    ``progress`` does not know of the version yet. Crash points: ``inside-state``,
    ``renamed-state``.
    """
    root, keep = states_directory(settings), settings.learner.keep_states
    if keep > 0:
        clear_partial(root)
        copy_to(root, checkpoint, version, lambda name: crash_point(f"{name}-state"))
    numbers = {**progress.versions, version: progress.sequence}
    for path in root.iterdir() if root.is_dir() else ():
        if not is_kept(numbers.get(path.name, 0), progress.sequence, keep):
            shutil.rmtree(path)


def is_kept(sequence: int, newest: int, keep: int) -> bool:
    """Tell whether the state of a version stays, when ``newest`` is the number of the last one.

    The newest ``keep``, of the ``2 * keep`` newest every second, of the ``4 * keep`` newest every
    fourth...: about ``keep / 2 * log2(newest)`` in all.
    """
    return sequence > 0 and newest - sequence < keep * (sequence & -sequence)


def state_of(settings: Settings, version: str) -> Path | None:
    """Return where the state of a version lies, None when it is not kept.

    ManifestError when the version or its state is not what was signed.
    """
    directory = states_directory(settings) / version
    if not (directory / STATE).is_file():
        return None
    manifest = verify(versions_directory(settings) / version, version)
    if file_sha256(directory / STATE) != manifest.state:
        raise ManifestError(
            f"{directory} is not the state that version {version[:12]} was published with; "
            "remove it, and start from another version"
        )
    return directory


def published_before(settings: Settings, checkpoint: Path) -> Published | None:
    """Return the version that was published from this very checkpoint, None when there is none.

    A process that ends between a release and its next checkpoint finds it again, whatever changed
    meanwhile in settings or code. A torn one is none: it is written again; a signature that is
    torn, or of an earlier key, is made again.
    """
    state = file_sha256(checkpoint / STATE)
    for directory in appeared(versions_directory(settings)):
        try:
            version, manifest = read_manifest(directory)
            if manifest.state == state:
                found = Published(version, directory, verify(directory, directory.name))
                _sign_again(directory, signing_key(settings))
                return found
        except ManifestError:
            continue
    return None


def _sign_again(directory: Path, key: Ed25519PrivateKey) -> None:
    """Put this key's signature in place, as a whole, unless it is there."""
    signed = sign((directory / MANIFEST_NAME).read_bytes(), key)
    path = directory / SIGNATURE_NAME
    if path.is_file() and path.read_bytes() == signed:
        return
    partial = directory.parent / f"{PARTIAL_PREFIX}{SIGNATURE_NAME}"
    with writing(path):
        partial.mkdir(exist_ok=True)
        (partial / SIGNATURE_NAME).write_bytes(signed)
        fsync(partial / SIGNATURE_NAME)
        (partial / SIGNATURE_NAME).replace(path)
        partial.rmdir()
