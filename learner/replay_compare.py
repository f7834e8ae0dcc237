"""Compares a version with the one a replay made in its place, and says why they may differ."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from contracts.manifest import Manifest, read_manifest
from learner.adapters import ADAPTER_WEIGHTS
from learner.publish import LEDGER
from learner.replay_report import Remade
from learner.version_line import Link

_FOLLOWS = ("parent", "state")
"""What differs as soon as an earlier version does."""


def remade(link: Link, directory: Path | None) -> Remade:
    """Return what became of a version; ``directory`` is None when the replay made none."""
    if directory is None:
        return Remade(
            sequence=link.manifest.sequence,
            version=link.version,
            remade="",
            same=False,
            same_weights=False,
            differences=("the replay made no version of this number",),
        )
    version, manifest = read_manifest(directory)
    weights = [each.files.get(ADAPTER_WEIGHTS) for each in (link.manifest, manifest)]
    return Remade(
        sequence=link.manifest.sequence,
        version=link.version,
        remade=version,
        same=version == link.version,
        same_weights=weights[0] == weights[1],
        differences=tuple(differences(link.manifest, manifest)),
    )


def differences(first: Manifest, second: Manifest) -> list[str]:
    """Return what is not the same, by name: fields, settings (with both values) and files."""
    found = []
    fields = (msgspec.to_builtins(first), msgspec.to_builtins(second))
    for name in fields[0]:
        if name in ("config", "files") or fields[0][name] == fields[1][name]:
            continue
        values = "" if name in _FOLLOWS else f": {fields[0][name]}, now {fields[1][name]}"
        found.append(f"{name}{values}")
    found += _changed(_flat(first.config), _flat(second.config))
    names = sorted(first.files.keys() | second.files.keys())
    return found + [name for name in names if first.files.get(name) != second.files.get(name)]


def reasons(link: Link, directory: Path | None) -> tuple[str, ...]:
    """Return why the first version that differs may differ, the surest first."""
    if directory is None:
        return ("fewer samples came from these offsets than were learned from",)
    manifest = read_manifest(directory)[1]
    found = []
    if link.manifest.code != manifest.code:
        found.append(f"it was made by {link.manifest.code}, this is {manifest.code}")
    settings = _changed(_flat(link.manifest.config), _flat(manifest.config))
    found += [f"another setting or library, {change}" for change in settings]
    if line := _first_line(link.directory / LEDGER, directory / LEDGER):
        found.append(f"the ledgers part at {line}")
    if link.manifest.files.get(ADAPTER_WEIGHTS) != manifest.files.get(ADAPTER_WEIGHTS):
        found.append(
            "settings that changed between two versions, another kind of processor or build of "
            "torch: sums of floats depend on the last two"
        )
    return tuple(found)


def _first_line(first: Path, second: Path) -> str:
    """Return the first pair of lines that are not the same."""
    with first.open(encoding="utf-8") as ours, second.open(encoding="utf-8") as theirs:
        for one, other in zip_longest(ours, theirs, fillvalue="nothing"):
            if one != other:
                return f"{one.strip()}, now {other.strip()}"
    return ""


def _changed(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {first.get(name)}, now {second.get(name)}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree of settings as one mapping of paths."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found
