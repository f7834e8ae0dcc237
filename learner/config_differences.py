"""Says in which fields two trees of settings differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return path and both values of every field that is not the same, None for one not there."""
    mine, other = _flat(first), _flat(second)
    return [
        (name, mine.get(name), other.get(name))
        for name in sorted(mine.keys() | other.keys())
        if mine.get(name) != other.get(name)
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree as one mapping of paths."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found
