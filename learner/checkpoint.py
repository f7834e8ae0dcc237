"""One atomic checkpoint after every batch: tensors in safetensors, the rest in JSON, no pickle.

Weights, anchor, optimizers, baseline, replay buffer and Kafka offset are one commit, so a sample is
in the weights exactly when the offset is behind it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contracts.codec import to_json
from contracts.errors import SettingsError, UnavailableError
from contracts.manifest import file_sha256
from learner.adapters import restore_adapters
from learner.anchor import Anchor
from learner.directory import CrashPoint, appear, appeared, clear_partial, no_crash
from learner.progress import Progress
from learner.train_state import TrainState

TENSORS, STATE = "tensors.safetensors", "state.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_log = logging.getLogger("learner")


class _Saved(Struct, frozen=True):
    tensors_sha256: str
    progress: Progress


class _TornError(Exception):
    """A crash has left a checkpoint without a file, or with one cut off or changed."""


def save(
    root: Path,
    train: TrainState,
    progress: Progress,
    keep: int,
    crash_point: CrashPoint = no_crash,
) -> Path:
    """Write the checkpoint of ``progress.batches`` below ``root`` and drop all but ``keep``.

    Newer ones, which `restore` passed over, are dropped, too: they are written again. Crash points:
    ``before-save``, ``inside``, ``renamed``.
    """

    def fill(directory: Path) -> str:
        save_file(tensors_of(train), directory / TENSORS)
        saved = _Saved(file_sha256(directory / TENSORS), progress)
        (directory / STATE).write_bytes(to_json(saved))
        return place(root, progress).name

    crash_point("before-save")
    final = appear(root, fill, crash_point)
    found = _checkpoints(root)
    older = [path for path in found if path.name <= final.name]
    for path in (*found[: -len(older)], *older[keep:]):
        shutil.rmtree(path)
    return final


def restore(root: Path, train: TrainState) -> Progress | None:
    """Set ``train`` to the newest sound checkpoint; return its progress, None when none is there.

    Torn directories are passed over with a warning. UnavailableError for one that cannot be read,
    which may be sound; SettingsError for one of another base model or of another release.
    """
    root.mkdir(parents=True, exist_ok=True)
    clear_partial(root)
    for path in _checkpoints(root):
        try:
            saved, tensors = _read_whole(path)
        except _TornError as error:
            _log.warning("checkpoint %s is torn (%s); trying the one before", path.name, error)
            continue
        if saved.progress.base != train.policy.base:
            raise SettingsError(
                f"checkpoint {path} belongs to base {saved.progress.base}, but policy.model is "
                f"{train.policy.base}; give policy.name another value to start anew"
            )
        apply(train, tensors, saved.progress)
        return saved.progress
    return None


def newest_first(root: Path) -> list[Path]:
    """Return the directories below ``root`` that hold a checkpoint, by how far each came.

    Torn ones are left out. UnavailableError and SettingsError as `restore` says.
    """
    found = {}
    for path in appeared(root):
        try:
            with _reading(path):
                found[path] = _decoded(path).progress.batches
        except _TornError as error:
            _log.warning("state %s is torn (%s)", path.name, error)
    return sorted(found, key=lambda path: found[path], reverse=True)


def _read_whole(path: Path) -> tuple[_Saved, dict[str, Tensor]]:
    with _reading(path):
        saved = _decoded(path)
        if file_sha256(path / TENSORS) != saved.tensors_sha256:
            raise _TornError(f"{TENSORS} differs from its hash")
        return saved, load_file(path / TENSORS)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell what is torn and stays so from what cannot be read now."""
    try:
        yield
    except FileNotFoundError as error:
        raise _TornError(str(error)) from error
    except (OSError, SafetensorError) as error:
        raise UnavailableError(
            f"checkpoint {path} cannot be read ({error}), and may be sound; let this user read it, "
            "raise the limit of open files, or mend the disk, and start again; to go on without "
            "it, move it elsewhere"
        ) from error


def _decoded(path: Path) -> _Saved:
    raw = (path / STATE).read_bytes()
    try:
        return msgspec.json.decode(raw, type=_Saved)
    except ValueError as error:
        try:
            msgspec.json.decode(raw)
        except ValueError:
            raise _TornError(f"{STATE}: {error}") from error
        raise SettingsError(
            f"checkpoint {path} has a state that this release does not know ({error}); start the "
            "release that wrote it, or give policy.name another value to start anew"
        ) from error


def bring_back(root: Path, state: Path) -> None:
    """Put a copy of a checkpoint, kept elsewhere, among those below ``root``."""
    copy_to(root, state, place(root, read(state)).name)


def copy_to(root: Path, checkpoint: Path, name: str, crash_point: CrashPoint = no_crash) -> None:
    """Let a copy of a checkpoint appear below ``root``; crash points: those of `appear`."""

    def fill(directory: Path) -> str:
        for part in (STATE, TENSORS):
            shutil.copyfile(checkpoint / part, directory / part)
        return name

    appear(root, fill, crash_point)


def apply(train: TrainState, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Set ``train`` to what a checkpoint holds of it."""
    _apply_tensors(train, tensors)
    train.spread = progress.spread
    if progress.multiplier is not None:
        train.multiplier = progress.multiplier
    train.anchor = Anchor(progress.anchor, _of_group(tensors, "anchor"))


def newest_progress(root: Path) -> Progress | None:
    """Return the progress of the newest checkpoint that can be read, and leave everything as it is:
    the learner that writes here may be at work."""
    for path in _checkpoints(root) if root.is_dir() else []:
        try:
            return msgspec.json.decode((path / STATE).read_bytes(), type=_Saved).progress
        except (OSError, msgspec.MsgspecError):
            continue  # it is being removed, or torn
    return None


def place(root: Path, progress: Progress) -> Path:
    """Return where the checkpoint of a progress lies."""
    return root / f"{progress.batches:09d}"


def read(directory: Path) -> Progress:
    """Return the progress of one checkpoint; OSError or ValueError when it cannot be read."""
    return msgspec.json.decode((directory / STATE).read_bytes(), type=_Saved).progress


def _checkpoints(root: Path) -> list[Path]:
    """Return checkpoint directories, newest first."""
    return sorted((p for p in root.iterdir() if p.is_dir() and p.name.isdigit()), reverse=True)


def _groups(train: TrainState) -> list[tuple[str, dict[str, nn.Parameter], torch.optim.Optimizer]]:
    return [
        ("adapter", train.policy.adapters(), train.optimizer),
        ("value", dict(train.value.named_parameters()), train.value_optimizer),
    ]


def tensors_of(train: TrainState) -> dict[str, Tensor]:
    """Return what a checkpoint holds of ``train`` besides numbers, on the CPU."""
    tensors: dict[str, Tensor] = {}
    tensors.update({f"anchor/{name}": value for name, value in train.anchor.weights.items()})
    for group, parameters, optimizer in _groups(train):
        for name, parameter in parameters.items():
            tensors[f"{group}/{name}"] = parameter.detach().cpu().clone()
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{group}.{moment}/{name}"] = value.detach().cpu().clone()
    return tensors


def _of_group(tensors: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    start = f"{group}/"
    return {k.removeprefix(start): tensor for k, tensor in tensors.items() if k.startswith(start)}


def _apply_tensors(train: TrainState, tensors: dict[str, Tensor]) -> None:
    restore_adapters(train.policy, _of_group(tensors, "adapter"))
    with torch.no_grad():
        for name, parameter in train.value.named_parameters():
            kept = tensors.get(f"value/{name}", torch.empty(0))
            if kept.shape != parameter.shape:
                raise SettingsError(
                    f"the checkpoint's baseline has {name} of shape {tuple(kept.shape)}, this "
                    f"release of Headrace {tuple(parameter.shape)}; give policy.name another value "
                    "to start anew"
                )
            parameter.copy_(kept)
    for group, parameters, optimizer in _groups(train):
        for name, parameter in parameters.items():
            if f"{group}.step/{name}" in tensors:
                optimizer.state[parameter] = {
                    moment: tensors[f"{group}.{moment}/{name}"].clone().to(parameter.device)
                    for moment in _MOMENTS
                }
