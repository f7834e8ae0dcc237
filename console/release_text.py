"""A version's view for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from console.gate_report import report_text
from console.release_view import ActionRow, ReleaseView
from console.table import table
from contracts.manifest import Manifest
from learner.ledger import NO_REWARD, PRICED, TAUGHT, WITHDRAWN

SHOWN = 12
MOST_ACTIONS = 20
"""Actions shown; ``--json`` has them all."""

_LEDGER = ("offset", "sample_id", "decision_id", "user_id", "action", "outcome")
_LEDGER_HEAD = (
    *("offset", "sample", "decision", "user", "action", "outcome"),
    *("reward", "coefficient", "correction", "user mean"),
)
_PAID = ("offset", "sample_id", "decision_id", "user_id", "action")
_PAID_HEAD = ("offset", "sample", "decision", "user", "action", "coefficient", "the rest")
PUT_RIGHT = "decisions that had taught, whose reward changed or was taken back"

_SAYS_NOTHING = frozenset({NO_REWARD, PRICED, WITHDRAWN})
"""Outcomes of samples whose reward stands for none."""

_CORRECTIONS = {"person": "corrected by a person", "safe-answer": "corrected to the safe answer"}


def view_text(view: ReleaseView) -> str:
    """Return the view for people; hashes and ids of versions are cut to 12 characters."""
    parts = [f"version {view.version}"]
    if view.manifest is not None:
        parts[0] += f" (number {view.manifest.sequence} of {view.manifest.policy})"
        parts.append(table(("what", "value"), _facts(view, view.manifest)))
        parts.append(_counts(view))
        parts.append(_actions(view.actions))
        parts.append("learned with\n" + "\n".join(_config(view.manifest.config)))
    if view.files:
        rows = [(file.name, file.sha256[:SHOWN], file.state) for file in view.files]
        parts.append(table(("file", "sha256", "is"), rows))
    parts.append(f"NOT SOUND: {view.fault}" if view.fault else "id, files and signature are sound")
    parts.append(report_text(view.gate) if view.gate else "it did not come before the gate yet")
    if view.ledger:
        parts.append(table(_LEDGER_HEAD, [_line(line) for line in view.ledger]))
    if view.payments:
        parts.append("put right: " + PUT_RIGHT)
        parts.append(table(_PAID_HEAD, [_payment(line) for line in view.payments]))
    return "\n\n".join(parts)


def _payment(line: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the cells of an earlier sample whose reward changed after it had taught."""
    ids = [line.get(name) or None for name in _PAID]
    rest = "let go: back where it was" if line.get("undone") else None
    return (*ids, f"{line.get('coefficient', 0.0):+.4f}", rest)


def _line(line: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the cells of a sample: what it got, and what that counted in the loss."""
    outcome = line.get("outcome")
    reward = None if outcome in _SAYS_NOTHING else f"{line.get('reward', 0.0):+.3f}"
    taught = f"{line.get('coefficient', 0.0):+.4f}" if outcome in TAUGHT else None
    ids = [line.get(name) for name in _LEDGER]
    cells = (*ids, reward, taught, line.get("correction"), line.get("user_reward_mean"))
    return tuple(None if cell == "" else cell for cell in cells)


def _facts(view: ReleaseView, manifest: Manifest) -> list[tuple[str, object]]:
    ranges = [
        (f"offsets of {r.topic}/{r.partition}", f"{r.first} to {r.next - 1}")
        for r in manifest.trained_on
    ]
    oldest, newest = manifest.oldest_feedback_time, manifest.newest_feedback_time
    feedback = f"{newest:%Y-%m-%d %H:%M:%S}"
    if oldest is not None:
        feedback = f"{oldest:%Y-%m-%d %H:%M:%S} to {feedback}"
    return [
        ("parent", manifest.parent[:SHOWN]),
        ("base", manifest.base),
        *ranges,
        ("users who taught it", "not counted" if manifest.users is None else manifest.users),
        ("newest sample", f"{manifest.as_of:%Y-%m-%d %H:%M:%S}"),
        ("feedback", feedback),
        ("made by", manifest.code),
        ("its state", "kept: a replay can start here" if view.state_kept else "not kept"),
        ("directory", view.directory),
    ]


def _counts(view: ReleaseView) -> str:
    """Return how many samples taught it, why the others did not, what corrections did, and how
    many earlier ones were put right."""
    outcomes, corrections = view.outcomes, view.corrections
    rest = {name: count for name, count in outcomes.items() if name != "used"}
    rows = [("used", outcomes.get("used", 0)), *rest.items()]
    told = [(name, corrections[by]) for by, name in _CORRECTIONS.items() if by in corrections]
    told += [("earlier ones put right", view.put_right)] if view.put_right else []
    return table(("samples", "count"), [*rows, ("read in all", sum(outcomes.values())), *told])


def _actions(rows: Sequence[ActionRow]) -> str:
    """Return what each action got and was taught, of those that are most frequent."""
    cells = [
        (
            row.action,
            row.samples,
            None if row.reward_mean is None else f"{row.reward_mean:+.3f}",
            row.decisions,
            None if row.violation_rate is None else f"{row.violation_rate:.1%}",
            f"{row.taught:+.3f}",
        )
        for row in rows[:MOST_ACTIONS]
    ]
    return table(("action", "samples", "mean reward", "decisions", "violations", "taught"), cells)


def _config(config: dict[str, Any], indent: str = "  ") -> list[str]:
    lines = []
    for name, value in config.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_config(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines
