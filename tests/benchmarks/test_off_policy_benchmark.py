"""Estimates on the Open Bandit logs point where the shop's own click rates do."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.off_policy import OTHER, open_bandit, table
from contracts.errors import UnavailableError
from contracts.settings import load_settings


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    try:
        return open_bandit(load_settings(environment={}).data_dir, repetitions=30)
    except UnavailableError as error:
        pytest.skip(str(error))


def test_each_log_tells_which_way_the_other_policy_differs(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert (row["estimate"] - row["logged"]) * (row["shown"] - row["logged"]) > 0, row


def test_the_estimates_are_within_their_errors_of_what_was_shown(
    rows: list[dict[str, Any]],
) -> None:
    for row in rows:
        error = (row["error"] ** 2 + row["shown_error"] ** 2) ** 0.5
        assert abs(row["estimate"] - row["shown"]) < 2.0 * error, row


def test_intervals_cover_from_the_log_that_supports_the_other_policy(
    rows: list[dict[str, Any]],
) -> None:
    """The log at random shows every item; Thompson sampling's shows some almost never."""
    covered = {(row["logger"], row["method"]): row["covered"] for row in rows}
    share = {row["logger"]: row["effective_samples"] / row["samples"] for row in rows}
    assert all(covered["random", method] >= 0.7 for method in ("snips", "doubly robust"))
    assert share["bts"] < 0.2 < share["random"]  # 0.2 is the gate's floor: it refuses the other


def test_the_table_has_a_row_per_log_and_method(rows: list[dict[str, Any]]) -> None:
    lines = table({"open_bandit": rows, "simulator": []}).splitlines()
    assert len(lines) == 2 + 3 * len(OTHER)
