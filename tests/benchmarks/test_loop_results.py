"""Results of the loop with a given base model stand apart from those of the demo's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loop import keep, read_report, table

MEASURED = [
    f"{name}_{when}{error}"
    for name in ("utility", "violation_rate", "right_action")
    for when in ("before", "after")
    for error in ("", "_se")
]


@pytest.fixture
def report() -> dict[str, Any]:
    counts = (
        *("interactions", "failed_requests", "rewards", "samples_learned"),
        *("decisions_explained", "versions_served"),
    )
    return {
        **dict.fromkeys(counts, 64),
        **dict.fromkeys(MEASURED, 0.5),
        "users": "desk",
        "seed": 0,
        "duration_seconds": 600.0,
        "freshness_seconds": {"count": 0, "p50": None, "p95": None},
    }


def test_a_given_model_has_a_file_and_a_table_of_its_own(
    report: dict[str, Any], tmp_path: Path
) -> None:
    own = keep(report, "abc", "", tmp_path)
    alone = table(tmp_path)
    given = keep(report, "abc", "SmolLM2", tmp_path)
    assert [own.name, given.name] == ["loop-desk-0.json", "loop-desk-0-SmolLM2.json"]
    assert read_report(given)["model"] == "SmolLM2"

    first, second = table(tmp_path).split("\n\n")

    assert first == alone
    assert "SmolLM2" not in first
    assert second.splitlines()[-1].startswith("| SmolLM2 | desk, 0 | 64 |")


def test_a_result_says_the_settings_it_was_given_and_not_where_things_lie(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HEADRACE_LEARNER__SEED", "3")
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(tmp_path))
    for name in ("GATEWAY__FEEDBACK_SECRET", "ENGINE__KEY", "ENGINE__ADMIN_KEY"):
        monkeypatch.setenv(f"HEADRACE_{name}", "hidden")
    kept = read_report(keep(report, "abc", "", tmp_path))
    assert kept["settings"] == {"HEADRACE_LEARNER__SEED": "3"}


def test_a_run_whose_versions_served_nothing_has_no_freshness(
    report: dict[str, Any], tmp_path: Path
) -> None:
    keep(report, "abc", "", tmp_path)
    assert "| - / - s | 10.0 |" in table(tmp_path)
