"""The report of a demonstration run: one struct, written as JSON and as a short table."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from msgspec import Struct

from console.report import RunFigures
from console.table import table
from console.traceability import Traceability

PACKAGES = (
    "headrace",
    "torch",
    "transformers",
    "peft",
    "faust-streaming",
    "feast",
    "kafka-python",
    "noida-db",
    "msgspec",
)

SCORED = ("utility", "violation_rate", "right_action")
COUNTED = (
    *("decisions_logged", "rewards", "samples_learned", "distinct_samples_learned"),
    *("releases", "promoted", "rolled_back", "versions_served"),
)
"""Figures of the log that the report has under the same names."""


class Measured(Struct, frozen=True, kw_only=True):
    """The latent truth on held-out questions, each a mean with its standard error."""

    version: str
    prompts: int
    utility: float
    utility_se: float
    violation_rate: float
    violation_rate_se: float
    right_action: float
    right_action_se: float
    right_by_intent: dict[str, float]


class Report(Struct, frozen=True, kw_only=True):
    """What ``headrace demo`` reports; the names are what scripts rely on."""

    users: str
    seed: int
    interactions: int
    failed_requests: int
    decisions_logged: int
    rewards: int
    samples_learned: int
    distinct_samples_learned: int
    releases: int
    promoted: int
    rolled_back: int
    versions_served: int
    decisions_explained: int
    decisions_traced: int
    audit_records: int
    audit_sound: bool
    utility_before: float
    utility_before_se: float
    utility_after: float
    utility_after_se: float
    violation_rate_before: float
    violation_rate_before_se: float
    violation_rate_after: float
    violation_rate_after_se: float
    right_action_before: float
    right_action_before_se: float
    right_action_after: float
    right_action_after_se: float
    freshness_seconds: dict[str, float | int | None]
    engine: str
    kafka: str
    duration_seconds: float
    stages_seconds: dict[str, float]
    python: str
    versions: dict[str, str]
    before: Measured
    after: Measured
    figures: RunFigures


def make_report(
    *,
    users: str,
    seed: int,
    interactions: int,
    failed_requests: int,
    before: Measured,
    after: Measured,
    figures: RunFigures,
    traced: Traceability,
    engine: str,
    kafka: str,
    stages: dict[str, float],
) -> Report:
    """Put the report together from what was measured and what the log shows."""
    fresh = figures.freshness_seconds
    counted = {name: getattr(figures, name) for name in COUNTED}
    scores = {
        f"{name}_{when}{suffix}": getattr(measured, f"{name}{suffix}")
        for name in SCORED
        for when, measured in (("before", before), ("after", after))
        for suffix in ("", "_se")
    }
    return Report(
        users=users,
        seed=seed,
        interactions=interactions,
        failed_requests=failed_requests,
        decisions_explained=traced.explained,
        decisions_traced=traced.traced,
        audit_records=traced.audit_records,
        audit_sound=not traced.broken,
        freshness_seconds=msgspec.to_builtins(fresh),
        engine=engine,
        kafka=kafka,
        duration_seconds=round(sum(stages.values()), 1),
        stages_seconds={name: round(seconds, 1) for name, seconds in stages.items()},
        python=platform.python_version(),
        versions=_versions(),
        before=before,
        after=after,
        figures=figures,
        **counted,
        **scores,
    )


def is_whole(report: Report) -> bool:
    """Return whether no request failed, every one was logged and can be explained, the audit is
    sound, and no sample was learned twice."""
    return (
        report.failed_requests == 0
        and report.decisions_logged == report.interactions
        and report.decisions_explained == report.decisions_logged
        and report.audit_sound
        and report.samples_learned == report.distinct_samples_learned
    )


def write_report(report: Report, path: Path) -> None:
    """Write the report as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def report_text(report: Report) -> str:
    """Return the short table for people."""
    before, after, fresh = report.before, report.after, report.freshness_seconds
    measured = table(
        ("held-out questions", "base", "learned"),
        [
            (name, _with_error(before, field), _with_error(after, field))
            for name, field in (
                ("utility", "utility"),
                ("violations", "violation_rate"),
                ("right action", "right_action"),
            )
        ],
    )
    once = report.samples_learned == report.distinct_samples_learned
    counted = table(
        ("what", "count"),
        [
            ("interactions", report.interactions),
            ("failed requests", report.failed_requests),
            ("decisions logged", report.decisions_logged),
            ("rewards", report.rewards),
            (
                f"samples learned{', each once' if once else ' (NOT each once)'}",
                report.samples_learned,
            ),
            ("releases", report.releases),
            ("promoted", report.promoted),
            ("rolled back", report.rolled_back),
            ("versions served", report.versions_served),
            ("decisions explained, link by link", report.decisions_explained),
            (
                f"audit records, chains {'sound' if report.audit_sound else 'BROKEN'}",
                report.audit_records,
            ),
        ],
    )
    p50, p95 = (_seconds(fresh[name]) for name in ("p50", "p95"))
    freshness = (
        f"feedback to first answer by weights trained on it: p50 {p50}, p95 {p95} "
        f"({fresh['finite']} of {fresh['count']} samples served by the end)"
    )
    where = f"engine {report.engine}, kafka {report.kafka}, {report.duration_seconds:.0f} s in all"
    return "\n\n".join([measured, counted, f"{freshness}\n{where}"])


def _with_error(measured: Measured, name: str) -> str:
    return f"{getattr(measured, name):+.3f} ± {getattr(measured, f'{name}_se'):.3f}"


def _seconds(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
