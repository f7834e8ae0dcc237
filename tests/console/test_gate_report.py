"""``headrace releases show`` tells what the gate found and why it refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from click.testing import CliRunner

from console.main import main
from contracts.evidence import DirectSampling, GateReport, SliceEvidence, write_report
from tests.serving.test_gate_verdict import SOUND

REPORT = GateReport(
    policy="desk",
    version="ab" * 32,
    sequence=3,
    incumbent="base",
    time=datetime(2026, 1, 2, tzinfo=UTC),
    reasons=("regression: slice 'order' lost 8 prompts",),
    evidence=SOUND,
    regression=DirectSampling(
        prompts="d",
        slices=("order", "order", "calc"),
        must=(False,) * 3,
        candidate=(False, True, True),
        incumbent=(True, True, False),
    ),
    red_team=None,
    thresholds={},
)


def _shown(state_dir: Path, *words: str) -> tuple[int, str]:
    found = CliRunner().invoke(
        main, ["releases", "show", *words], env={"HEADRACE_STATE_DIR": str(state_dir)}
    )
    return found.exit_code, found.output


def test_a_report_is_shown_with_its_reasons_estimates_and_rates(state_dir: Path) -> None:
    write_report(state_dir, REPORT)
    code, output = _shown(state_dir, "abab")
    assert code == 1  # only the report is left of it
    assert "NOT SOUND: its files are not below" in output
    assert "version abababababab (number 3 of desk): refused" in output
    assert "against it: regression: slice 'order' lost 8 prompts" in output
    assert "600 answers of 80 judges, KL to the parent 0.300 nats" in output
    rows = [line.split() for line in output.splitlines()]
    assert ["order", "2", "1", "2"] in rows
    assert ["calc", "1", "1", "0"] in rows
    slice_: SliceEvidence = SOUND.slices[0]
    assert [slice_.name, "90", "0.000", "0.050", "0.000"] in rows
    assert ["refuse", "trend", "900", "0.100", "0.012", "0.008"] in rows
    (unwatched,) = (line.strip() for line in output.splitlines() if "not watched" in line)
    assert unwatched.startswith("not watched: length (step), tool-alone (step), refuse (step), ")
    assert unwatched.endswith("drift (trend): one version gave all 900 answers that are kept")
    assert "red team: not asked" in output

    code, output = _shown(state_dir, "abab", "--json")
    assert json.loads(output)["gate"]["evidence"]["kl_to_parent"] == 0.3
    assert json.loads(output)["gate"]["evidence"]["unwatched"][0]["name"] == "length"
