"""What a drill found: one row per bad version, for people and as JSON."""

from __future__ import annotations

from msgspec import Struct

from console.drill_kinds import Kind
from console.drill_watch import End
from console.table import table

GATE = "gate"


class DrillRow(Struct, frozen=True, kw_only=True):
    """One bad version and its end.

    ``by`` names what stopped it: the verification, the gate, or a guardrail. ``users_exposed`` saw
    an answer by it; of its ``answers`` to users the guard kept ``kept_back_answers`` back,
    ``shadow_answers`` nobody saw, and in place of ``replaced_answers`` another version or rule
    answered. ``requests`` came from the rollout's beginning to its end, ``seconds`` passed from the
    release, ``exposed_seconds`` from its first share of users.
    """

    kind: Kind
    variant: str
    version: str
    ended: End
    by: str
    reason: str
    users_exposed: int = 0
    answers: int = 0
    kept_back_answers: int = 0
    shadow_answers: int = 0
    replaced_answers: int = 0
    requests: int = 0
    failed_requests: int = 0
    asked: int = 0
    seconds: float = 0.0
    exposed_seconds: float = 0.0


class DrillReport(Struct, frozen=True, kw_only=True):
    """All rows of one drill; ``failed_requests`` are of the drill's own users."""

    kind: Kind
    what: str
    seed: int
    skip_gate: bool
    asked: int
    failed_requests: int
    rows: tuple[DrillRow, ...]


def is_passed(report: DrillReport) -> bool:
    """Return whether every bad version was refused or rolled back, and no request failed."""
    stopped = all(row.ended in ("refused", "rolled-back") for row in report.rows)
    return stopped and bool(report.rows) and report.failed_requests == 0


def stopped_by(ended: End, reason: str) -> str:
    """Return what stopped a version: the gate's reasons begin with its name, those of a guardrail
    with the guardrail's, and what was refused before the gate failed the verification."""
    if ended == "refused":
        return GATE if reason.startswith(f"{GATE}:") else "verification"
    if ended == "rolled-back":
        return reason.partition(":")[0].partition(" after ")[0][:40]
    return ""


def report_text(report: DrillReport) -> str:
    """Return the report for people."""
    heads = (
        *("version", "variant", "ended", "by", "users exposed", "answers", "kept back"),
        *("in shadow", "replaced", "requests", "failed", "seconds", "exposed s"),
    )
    rows = [
        (
            *(row.version[:12], row.variant, row.ended, row.by, row.users_exposed, row.answers),
            *(
                row.kept_back_answers,
                row.shadow_answers,
                row.replaced_answers,
                row.requests,
                row.failed_requests,
            ),
            *(round(row.seconds, 1), round(row.exposed_seconds, 1)),
        )
        for row in report.rows
    ]
    verdict = "PASSED" if is_passed(report) else "NOT PASSED"
    lines = [
        f"drill {report.kind}: {report.what}",
        table(heads, rows),
        *(f"{row.version[:12]}: {row.reason or 'nothing was decided'}" for row in report.rows),
        f"{verdict}: {report.asked} requests of the drill's users, {report.failed_requests} failed",
    ]
    return "\n".join(lines)
