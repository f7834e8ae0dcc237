"""Writes a version for a drill as the learner writes its own: pinned by a manifest that says so."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from contracts.clock import Clock
from contracts.events import BASE_VERSION
from contracts.manifest import Manifest, hash_files, write_manifest
from contracts.settings import Settings
from learner.directory import appear, no_crash
from learner.drill_adapter import Likeness, read_prompts, shape
from learner.policy import Policy, load_policy, save_adapter
from learner.publish import LEDGER, code_version, versions_directory


class DrillOrder(Struct, frozen=True, kw_only=True):
    """What is wanted, and how many of it: equal weights, but each a version of its own.

    ``parent`` is the directory of the version it starts from, None: the base.
    """

    drill: str
    likeness: Likeness
    sequence: int
    seed: int
    copies: int = 1
    skip_gate: bool = False
    parent: Path | None = None
    prompts: Path | None = None


class DrillVersion(Struct, frozen=True):
    """A version on disk."""

    version: str
    directory: str


def make_versions(settings: Settings, order: DrillOrder, clock: Clock) -> list[DrillVersion]:
    """Make the adapter and write it beside the policy's versions, under ids of its own.

    SettingsError when the parent's adapters do not fit the base.
    """
    policy = load_policy(settings)
    prompts = read_prompts(order.prompts) if order.prompts else []
    shape(policy, order.likeness, order.parent, prompts, order.seed)
    return [_write(settings, policy, order, copy, clock.now()) for copy in range(order.copies)]


def _write(
    settings: Settings, policy: Policy, order: DrillOrder, copy: int, now: datetime
) -> DrillVersion:
    def fill(directory: Path) -> str:
        save_adapter(policy, directory)
        (directory / LEDGER).write_bytes(b"")  # it learned from no sample
        manifest = _manifest(settings, policy, order, hash_files(directory), now)
        manifest.config["drill"]["copy"] = copy
        return write_manifest(directory, manifest)

    final = appear(versions_directory(settings), fill, no_crash)
    return DrillVersion(final.name, str(final.resolve()))


def _manifest(
    settings: Settings, policy: Policy, order: DrillOrder, files: dict[str, str], now: datetime
) -> Manifest:
    """Return the manifest; its time makes a drill that is repeated another version."""
    return Manifest(
        policy=settings.policy.name,
        sequence=order.sequence,
        form="lora",
        base=policy.base,
        parent=order.parent.name if order.parent else BASE_VERSION,
        as_of=now,
        newest_feedback_time=now,
        trained_on=(),
        samples=0,
        config={
            "drill": {"kind": order.drill, "skip_gate": order.skip_gate, "seed": order.seed},
            "learner": msgspec.to_builtins(settings.learner),
        },
        code=code_version(),
        files=files,
    )
