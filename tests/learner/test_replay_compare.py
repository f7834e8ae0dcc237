"""What a version was made by is compared with what made it again, as far as both say it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from contracts.manifest import Manifest, OffsetRange, read_manifest, write_manifest
from learner.replay_compare import first_unlike, reasons, remade
from learner.version_line import Link

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
OLDER: dict[str, Any] = {"base_dtype": "float32", "device": "cpu", "processes": 1, "torch": "2.13"}
NEWER = {
    **OLDER,
    "transformers": "5.17.0",
    "tokenizers": "0.23.1",
    "peft": "0.21.0",
    "safetensors": "0.8.0",
}


def _version(root: Path, config: dict[str, Any]) -> Path:
    """Write a version of this config, and return where."""
    directory = root / "new"
    directory.mkdir(parents=True)
    (directory / "ledger.jsonl").touch()
    manifest = Manifest(
        policy="assistant",
        sequence=1,
        form="lora",
        base="sha256:0",
        parent="base",
        as_of=MOMENT,
        newest_feedback_time=MOMENT,
        trained_on=(OffsetRange(topic="samples", partition=0, first=0, next=8),),
        samples=8,
        config=config,
        code="headrace 0.1.0",
        files={},
    )
    return directory.rename(root / write_manifest(directory, manifest))


def _why(root: Path, then: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """Return the reasons for which a version that may differ does, other than a user's absence."""
    first, again = _version(root / "live", then), _version(root / "replay", now)
    link = Link(first.name, first, read_manifest(first)[1])
    _, why = first_unlike([link], [remade(link, again)], root / "replay", control=0)
    assert reasons(link, again) == why
    return why


@pytest.mark.parametrize("name", ["torch", "transformers", "tokenizers", "peft", "safetensors"])
def test_another_library_is_told(tmp_path: Path, name: str) -> None:
    why = _why(tmp_path, NEWER, {**NEWER, name: "9.9"})
    assert why == (f"another setting or library, {name}: {NEWER[name]}, now 9.9",)


def test_libraries_that_an_older_manifest_does_not_name_are_not_compared(tmp_path: Path) -> None:
    assert _why(tmp_path, OLDER, NEWER) == ()


def test_an_older_manifest_that_names_torch_alone_is_compared_by_it(tmp_path: Path) -> None:
    (why,) = _why(tmp_path, OLDER, {**NEWER, "torch": "9.9"})
    assert why.endswith("torch: 2.13, now 9.9")
