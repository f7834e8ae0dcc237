"""The gate's report on one version, shown to people."""

from __future__ import annotations

from console.table import table
from contracts.evidence import DirectSampling, GateReport, OffPolicy, ReleaseEvidence


def report_text(report: GateReport) -> str:
    """Return the report for people."""
    verdict = "refused" if report.refused else "passed"
    subject = f"version {report.version[:12]} (number {report.sequence} of {report.policy})"
    when = f"at {report.time:%Y-%m-%d %H:%M:%S}, in service then: {report.incumbent[:12]}"
    lines = [f"{subject}: {verdict} {when}"]
    lines += [f"  against it: {reason}" for reason in report.reasons]
    if report.reasons and report.waived:
        lines.append(f"  let through all the same: {report.waived}")
    lines += ["", *_evidence_lines(report), ""]
    lines += _direct_lines("regression", report.regression)
    lines += _direct_lines("red team", report.red_team)
    return "\n".join(lines).rstrip()


def _evidence_lines(report: GateReport) -> list[str]:
    evidence = report.evidence
    if evidence is None:
        return ["no evidence came with it"]
    moved = "unknown" if evidence.kl_to_parent is None else f"{evidence.kl_to_parent:.3f} nats"
    lines = [
        f"{evidence.samples} answers of {evidence.users} judges, KL to the parent {moved}",
        f"reward in the log {evidence.logged_reward:+.3f}, violations {evidence.logged_cost:.3f}",
    ]
    if evidence.levels:
        heads = ("level", "effective", "mean weight", "DR difference", "from", "V >=", "cost <=")
        rows = [(name, *_level_cells(level)) for name, level in evidence.levels.items()]
        lines.append(table((*heads, "C <="), rows))
    if evidence.slices:
        cells = [(s.name, s.samples, s.difference, s.error, s.cost) for s in evidence.slices]
        lines.append(table(("slice", "answers", "difference", "error", "cost"), cells))
    if evidence.watch:
        rises = [(f.name, f.view, f.samples, f.before, f.rise, f.error) for f in evidence.watch]
        lines.append(table(("watched", "view", "answers", "before", "rose by", "error"), rises))
    lines += [f"not watched: {each}" for each in _unwatched(evidence)]
    return lines


def _unwatched(evidence: ReleaseEvidence) -> list[str]:
    """Return what could not be seen, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for each in evidence.unwatched:
        by_reason.setdefault(each.reason, []).append(f"{each.name} ({each.view})")
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def _level_cells(level: OffPolicy) -> tuple[float, ...]:
    return (
        level.support.effective_samples,
        level.support.mean_weight,
        level.difference.value,
        level.difference.lower,
        level.value_lower_bound,
        level.cost.upper,
        level.cost_upper_bound,
    )


def _direct_lines(name: str, direct: DirectSampling | None) -> list[str]:
    if direct is None:
        return [f"{name}: not asked"]
    slices = list(dict.fromkeys(direct.slices))
    rows = []
    for each in slices:
        inside = [place for place, where in enumerate(direct.slices) if where == each]
        good = sum(direct.candidate[place] for place in inside)
        rows.append((each, len(inside), good, sum(direct.incumbent[place] for place in inside)))
    return [table((name, "prompts", "as expected", "in service"), rows), ""]
