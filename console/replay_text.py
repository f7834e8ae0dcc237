"""A replay's report for people."""

from __future__ import annotations

from console.table import table
from learner.replay_report import Remade, Removal, ReplayReport

SHOWN = 12
LONGEST = 160


def report_text(report: ReplayReport) -> str:
    """Return the report; ids of versions are cut to 12 characters."""
    whole = f"{report.policy}: from {report.start[:SHOWN]} to {report.end[:SHOWN]}"
    parts = [f"{whole}, {report.records} records read again", _versions(report)]
    if report.removal is not None:
        parts.append(_removal(report, report.removal))
    else:
        parts.append(_verdict(report))
    if report.looked_up:
        parts.append(
            f"{report.looked_up} features of users were in no ledger: "
            "they are what the store says now"
        )
    parts.append(f"made in {report.directory}; it is released by nobody, its key trusted by nobody")
    return "\n\n".join(parts)


def _versions(report: ReplayReport) -> str:
    heads = ("number", "version", "made again", "is", "weights")
    return table(heads, [(*_ids(one), *_verdicts(one)) for one in report.versions])


def _ids(one: Remade) -> tuple[object, ...]:
    return (one.sequence, one.version[:SHOWN], one.remade[:SHOWN] or "-")


def _verdicts(one: Remade) -> tuple[str, str]:
    if not one.remade:
        return ("not made", "-")
    return (
        "the same" if one.same else "different",
        "the same" if one.same_weights else "different",
    )


def _verdict(report: ReplayReport) -> str:
    if report.same:
        return "every version came out the same, byte for byte"
    first = next(version for version in report.versions if not version.same)
    lines = [f"version {first.version[:SHOWN]} is the first that differs, in"]
    lines += [f"  {_cut(difference)}" for difference in first.differences]
    lines += ["why that may be:", *(f"  {_cut(why)}" for why in report.why)]
    return "\n".join(lines)


def _removal(report: ReplayReport, removal: Removal) -> str:
    if not removal.samples:
        return "the user has no sample there: nothing was left out; was the id given as in events?"
    fates = ", ".join(f"{count} {outcome}" for outcome, count in removal.outcomes.items())
    versions = ", ".join(version[:SHOWN] for version in removal.versions) or "none"
    lines = [
        f"left out: {removal.samples} samples, the first at offset {removal.first_offset}: {fates}",
        f"versions that had read them: {versions}",
    ]
    if removal.moved is None:
        lines.append("the samples left fill no version")
    else:
        lines.append(
            f"the weights of version {removal.newest} moved by {removal.moved:.2%} of their norm"
        )
    lines += _control(report, removal)
    if report.unlearned:
        lines.append(f"{report.unlearned} samples at the end fill no micro-batch yet")
    if not removal.certain:
        lines.append(
            f"the log begins at offset {report.log_begins}, older ledgers name no users: "
            f"whether the user taught {report.start[:SHOWN]} cannot be told"
        )
    return "\n".join(lines)


def _control(report: ReplayReport, removal: Removal) -> list[str]:
    """Return whether what moved is the user's doing, as far as other versions can tell."""
    if removal.unlike:
        unlike = removal.unlike[:SHOWN]
        return [
            f"not the user's doing alone: version {unlike} differs for another reason",
            "why that may be:",
            *(f"  {_cut(why)}" for why in report.why),
        ]
    if removal.control:
        return [f"{removal.control} versions from before that sample came out the same"]
    return [
        "no version from before that sample was made again, so nothing shows that this machine",
        "comes to the same weights; give --from an older one to see",
    ]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
