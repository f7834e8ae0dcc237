"""What a version was made by is compared with what made it again, as far as both say it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from contracts.evidence import ReleaseEvidence, write_evidence
from contracts.manifest import Manifest, OffsetRange, hash_files, read_manifest, write_manifest
from learner.evaluation import INCUMBENT_GONE
from learner.replay_compare import first_unlike, reasons, remade
from learner.version_line import Link
from learner.watch import unwatched_steps

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
OLDER: dict[str, Any] = {"base_dtype": "float32", "device": "cpu", "processes": 1, "torch": "2.13"}
NEWER = {
    **OLDER,
    "transformers": "5.17.0",
    "tokenizers": "0.23.1",
    "peft": "0.21.0",
    "safetensors": "0.8.0",
    "numpy": "2.4.6",
}
UNNAMED = "another kind of processor or build of a library, which no version names"
EVIDENCE = ReleaseEvidence(
    policy="assistant",
    sequence=1,
    parent="base",
    as_of=MOMENT,
    samples=8,
    users=2,
    versions={"base": 8},
    kl_to_parent=0.25,
    logged_reward=0.5,
    logged_cost=0.0,
    levels={},
    slices=(),
)


def _version(
    root: Path, config: dict[str, Any], evidence: ReleaseEvidence = EVIDENCE, state: str = ""
) -> Path:
    """Write a version of this config, and return where."""
    directory = root / "new"
    directory.mkdir(parents=True)
    (directory / "ledger.jsonl").touch()
    write_evidence(directory, evidence)
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
        state=state,
        files=hash_files(directory),
    )
    return directory.rename(root / write_manifest(directory, manifest))


def _link(directory: Path) -> Link:
    return Link(directory.name, directory, read_manifest(directory)[1])


def _others(root: Path, then: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """Return the reasons for which a version that may differ does, other than a user's absence."""
    first, again = _link(_version(root / "live", then)), _version(root / "replay", now)
    _, why = first_unlike([first], [remade(first, again)], root / "replay", control=0)
    if why:
        assert reasons(first, again) == why
    return why


@pytest.mark.parametrize(
    "name", ["torch", "transformers", "tokenizers", "peft", "safetensors", "numpy"]
)
def test_another_library_is_told(tmp_path: Path, name: str) -> None:
    why = _others(tmp_path, NEWER, {**NEWER, name: "9.9"})
    assert why == (f"another setting or library, {name}: {NEWER[name]}, now 9.9",)


def test_libraries_that_an_older_manifest_does_not_name_are_not_compared(tmp_path: Path) -> None:
    assert _others(tmp_path, OLDER, NEWER) == ()
    unnamed = {name: version for name, version in NEWER.items() if name != "numpy"}
    first, again = _version(tmp_path / "one", unnamed), _version(tmp_path / "other", NEWER)
    only_one = "another version of numpy, which only one of the two names, "
    assert reasons(_link(first), again) == (f"{only_one}{UNNAMED}",)


def test_an_older_manifest_that_names_torch_alone_is_compared_by_it(tmp_path: Path) -> None:
    (why,) = _others(tmp_path, OLDER, {**NEWER, "torch": "9.9"})
    assert why.endswith("torch: 2.13, now 9.9")


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (None, 0.25, "the weights of the parent, .*, were gone, and are there now"),
        (0.25, None, "the weights of the parent, .*, were there, and are gone now"),
        (0.25, 0.2500001, "another kind of processor, or build of torch or numpy: .*kl_to_parent"),
    ],
)
def test_evidence_that_alone_differs_has_a_reason(
    tmp_path: Path, then: float | None, now: float | None, said: str
) -> None:
    first, again = (
        _version(tmp_path / name, NEWER, replace(EVIDENCE, kl_to_parent=moved))
        for name, moved in (("live", then), ("replay", now))
    )
    (why,) = reasons(_link(first), again)
    assert re.match(said, why)


def test_evidence_without_the_weights_of_the_version_in_service_says_so(tmp_path: Path) -> None:
    blind = unwatched_steps(INCUMBENT_GONE, ()).unwatched
    first = _version(tmp_path / "live", NEWER, EVIDENCE)
    again = _version(tmp_path / "replay", NEWER, replace(EVIDENCE, unwatched=blind))
    (why,) = reasons(_link(first), again)
    assert re.match("the weights of the version in service, .*, were there, and are gone now", why)


def test_a_difference_that_nothing_tells_the_reason_of_has_those_that_no_version_names(
    tmp_path: Path,
) -> None:
    first, again = (
        _version(tmp_path / "live", NEWER),
        _version(tmp_path / "replay", NEWER, state="1"),
    )
    assert reasons(_link(first), again) == (UNNAMED,)
