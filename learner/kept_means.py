"""The users' means that batches were given, on disk before a batch is learned.

The feature store may say otherwise later: rows came in, or it could not be read. A batch that a
crash cut off is learned again with the means of the first time, so that the end is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from contracts.codec import to_json
from contracts.errors import UnavailableError
from learner.directory import fsync, writing
from learner.experience import Experience
from learner.user_features import RewardMeans


class _Kept(Struct, frozen=True):
    """A user's mean for one sample, and the newest batch that asked for it."""

    batch: int
    mean: float | None


def means_path(root: Path) -> Path:
    """Return where the means lie that go with the checkpoints in ``root``: beside them."""
    return root.with_name(f"{root.name}.means.json")


def kept_means(path: Path, otherwise: RewardMeans, batch: int, batches: int) -> RewardMeans:
    """Return a lookup for one batch: first in the file, then ``otherwise``.

    What it finds is in the file when it returns. The newest ``batches`` batches are in it: those
    before this one are learned again where checkpoints are torn.
    """

    def look_up(experiences: Sequence[Experience]) -> list[float | None]:
        kept = _read(path)
        new = [one for one in experiences if one.sample_id not in kept]
        means = {sample_id: one.mean for sample_id, one in kept.items()}
        if new:
            means |= zip((one.sample_id for one in new), otherwise(new), strict=True)
        mine = {one.sample_id: _Kept(batch, means[one.sample_id]) for one in experiences}
        after = {i: one for i, one in kept.items() if one.batch > batch - batches} | mine
        if after != kept:
            _write(path, after)
        return [means[one.sample_id] for one in experiences]

    return look_up


def _read(path: Path) -> dict[str, _Kept]:
    """Return what is kept; nothing where there is no such file.

    UnavailableError where it cannot be read, or is torn: unlike a checkpoint, what was in it does
    not follow from the log.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Kept])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnavailableError(
            f"users' means {path} cannot be read ({error}), and may be needed to learn the batch "
            "as it was learned before; let this user read it, mend the disk or put the file back "
            "from a copy, and start again; to go on with what the feature store says now, move "
            "the file elsewhere"
        ) from error


def _write(path: Path, kept: dict[str, _Kept]) -> None:
    """Put the file in place whole, for good."""
    aside = path.with_name(f"{path.name}.partial")
    with writing(path):
        aside.write_bytes(to_json(kept))
        fsync(aside)
        aside.replace(path)
        fsync(path.parent)
