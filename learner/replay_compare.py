"""Compares a version with the one a replay made in its place, and says why they may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from contracts.evidence import EVIDENCE_NAME, read_evidence
from contracts.manifest import Manifest, read_manifest
from learner.adapters import ADAPTER_WEIGHTS
from learner.config_differences import differing
from learner.evaluation import INCUMBENT_GONE
from learner.publish import LEDGER, LIBRARIES, PROCESSES
from learner.replay_report import Remade
from learner.version_line import Link

_FOLLOWS = ("parent", "state")
"""What differs as soon as an earlier version does."""

_MADE_BY = ("base_dtype", "device", PROCESSES, "torch", *LIBRARIES)
"""What of ``config`` follows from the machine and the release alone, whatever was learned."""


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
    found += _changed(first.config, second.config)
    names = sorted(first.files.keys() | second.files.keys())
    return found + [name for name in names if first.files.get(name) != second.files.get(name)]


def reasons(link: Link, directory: Path | None) -> tuple[str, ...]:
    """Return why the first version that differs may differ, the surest first; never nothing."""
    if directory is None:
        return ("fewer samples came from these offsets than were learned from",)
    manifest = read_manifest(directory)[1]
    found = _by_other_code(link.manifest, manifest)
    found += _by_other_settings(link.manifest.config, manifest.config)
    if line := _first_line(link.directory / LEDGER, directory / LEDGER):
        found.append(f"the ledgers part at {line}")
    if _differs(ADAPTER_WEIGHTS, link.manifest, manifest):
        found.append(
            "settings that changed between two versions, another kind of processor or build of "
            "torch: sums of floats depend on the last two"
        )
    elif _differs(EVIDENCE_NAME, link.manifest, manifest):
        found.append(_by_other_evidence(link.directory, directory))
    return tuple(found) or (_by_what_is_not_named(link.manifest.config, manifest.config),)


def first_unlike(
    part: Sequence[Link], versions: Sequence[Remade], root: Path, control: int
) -> tuple[str, tuple[str, ...]]:
    """Return the first version that differs for another reason than a user's absence, "" for none,
    and why that may be.

    From the first ``control`` nobody was left out, so they must be as they were. The others may
    differ, but not by who made them. ``root`` is where those of the replay lie.
    """
    for place, (link, version) in enumerate(zip(part, versions, strict=True)):
        directory = root / version.remade if version.remade else None
        if place < control and not version.same:
            return version.version, reasons(link, directory)
        if directory is not None and (others := _made_otherwise(link, directory)):
            return version.version, others
    return "", ()


def _made_otherwise(link: Link, directory: Path) -> tuple[str, ...]:
    """Return by what other code, libraries or kind of machine a version was made again."""
    manifest = read_manifest(directory)[1]
    then, now = (
        {name: each.config[name] for name in _MADE_BY if name in each.config}
        for each in (link.manifest, manifest)
    )
    return (*_by_other_code(link.manifest, manifest), *_by_other_settings(then, now))


def _differs(file: str, first: Manifest, second: Manifest) -> bool:
    return first.files.get(file) != second.files.get(file)


def _by_other_evidence(first: Path, second: Path) -> str:
    """Return why evidence on the same weights may differ."""
    then, now = (msgspec.to_builtins(read_evidence(each)) or {} for each in (first, second))
    changed = [name for name in then.keys() | now.keys() if then.get(name) != now.get(name)]
    for whose, missing in (("parent", _parent_gone), ("version in service", _incumbent_gone)):
        gone = [missing(found) for found in (then, now)]
        if gone[0] != gone[1]:
            told = "were gone, and are there now" if gone[0] else "were there, and are gone now"
            return f"the weights of the {whose}, which the evidence compares with, {told}"
    return (
        "another kind of processor, or build of torch or numpy: sums of floats in the evidence "
        f"({', '.join(sorted(changed)) or 'its form'}) depend on them"
    )


def _parent_gone(evidence: Mapping[str, Any]) -> bool:
    return evidence.get("kl_to_parent") is None


def _incumbent_gone(evidence: Mapping[str, Any]) -> bool:
    return any(one["reason"] == INCUMBENT_GONE for one in evidence.get("unwatched", ()))


def _by_what_is_not_named(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Return what may be behind a difference of which nothing in manifests and files tells."""
    unnamed = ", ".join(name for name in LIBRARIES if (name in first) != (name in second))
    libraries = (
        f"another version of {unnamed}, which only one of the two names, " if unnamed else ""
    )
    return f"{libraries}another kind of processor or build of a library, which no version names"


def _by_other_code(first: Manifest, second: Manifest) -> list[str]:
    same = first.code == second.code
    return [] if same else [f"it was made by {first.code}, this is {second.code}"]


def _by_other_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Leave out libraries that one of the two does not name: an older release named torch alone."""
    unnamed = {name for name in LIBRARIES if name not in first or name not in second}
    mine, other = (
        {name: value for name, value in each.items() if name not in unnamed}
        for each in (first, second)
    )
    return [f"another setting or library, {change}" for change in _changed(mine, other)]


def _first_line(first: Path, second: Path) -> str:
    """Return the first pair of lines that are not the same."""
    with first.open(encoding="utf-8") as ours, second.open(encoding="utf-8") as theirs:
        for one, other in zip_longest(ours, theirs, fillvalue="nothing"):
            if one != other:
                return f"{one.strip()}, now {other.strip()}"
    return ""


def _changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {mine}, now {other}" for name, mine, other in differing(first, second)]
