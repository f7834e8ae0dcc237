"""What a version brings to the gate: estimates of its value and cost, made before any user saw it.

The learner writes it as one of the version's files, so the version's id pins it. It comes from the
answers that judges rated (`contracts.judges`): users whose feedback trained nothing.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from contracts.codec import to_json
from contracts.errors import ManifestError

EVIDENCE_NAME = "evidence.json"

ERROR_SHARE = 0.05
"""Chance that a bound is wrong, on each side."""

Level = Literal["answer", "first-decision"]


class Interval(Struct, frozen=True, kw_only=True):
    """An estimate with its bounds, each one-sided at 95 %, and its standard error."""

    value: float
    lower: float
    upper: float
    error: float


class Support(Struct, frozen=True, kw_only=True):
    """How much of the candidate the log covers; see `learner.off_policy.support`."""

    samples: int
    users: int
    effective_samples: float
    largest_weight_share: float
    mean_weight: float
    mean_weight_error: float


class OffPolicy(Struct, frozen=True, kw_only=True):
    """Estimates with the weights of one level: of whole answers, or of the first decision alone.

    ``difference`` is the doubly robust value minus what the logging versions earned on the same
    questions. The two bounds at the end count what was never seen as the worst reward and as a
    violation.
    """

    support: Support
    ips: Interval
    snips: Interval
    capped: float
    doubly_robust: Interval
    difference: Interval
    cost: Interval
    value_lower_bound: float
    cost_upper_bound: float


class SliceEvidence(Struct, frozen=True, kw_only=True):
    """The difference in reward to the logging versions where the parent would mostly do this.

    ``name`` is the parent's most likely first decision: a function of the question alone.
    """

    name: str
    samples: int
    difference: float
    error: float
    cost: float


Alarm = Literal["length", "refuse", "clarify", "tool-alone", "drift", "model-drift"]
"""What is watched; see `learner.watch`."""

View = Literal["step", "trend"]

EXPECTED: tuple[tuple[Alarm, View], ...] = (
    *(("length", "step"), ("tool-alone", "step"), ("refuse", "step"), ("clarify", "step")),
    *(("length", "trend"), ("tool-alone", "trend"), ("refuse", "trend"), ("clarify", "trend")),
    ("drift", "trend"),
)
"""Each is a figure or one of those that could not be had; so is model drift with a reward model."""


class WatchFigure(Struct, frozen=True, kw_only=True):
    """How far one thing rose: from the version in service to a release (``step``), or over the
    newest versions (``trend``).

    ``before`` is what it rose from, ``error`` the standard error of the rise, ``samples`` how many
    answers it is taken from. Shares are per answer, ``length`` in tokens with its rise relative.
    """

    name: Alarm
    view: View
    before: float
    rise: float
    error: float
    samples: int


class Unwatched(Struct, frozen=True, kw_only=True):
    """A figure of the watch that could not be had, and why.

    ``awaits`` are the versions whose next answers alone can give it: while one of them is in
    service, whoever waits does not wait in vain.
    """

    name: Alarm
    view: View
    reason: str
    awaits: tuple[str, ...] = ()


class ReleaseEvidence(Struct, frozen=True, kw_only=True):
    """Evidence on one version.

    ``as_of`` is when the newest of its answers was given, ``versions`` counts them by the version
    that gave them. ``kl_to_parent`` is in nats per answer, None when the parent's weights are
    gone. ``levels`` is empty when there were too few answers to estimate from. ``reward_model`` is
    the version that learning and the doubly robust estimates made use of, "" when there was none.
    ``watch`` is None where nobody looked, ``unwatched`` what could not be seen by those who did.
    """

    format: Literal[1] = 1
    policy: str
    sequence: int
    parent: str
    as_of: datetime | None
    samples: int
    users: int
    versions: dict[str, int]
    kl_to_parent: float | None
    logged_reward: float
    logged_cost: float
    levels: dict[Level, OffPolicy]
    slices: tuple[SliceEvidence, ...]
    reward_model: str = ""
    watch: tuple[WatchFigure, ...] | None = None
    unwatched: tuple[Unwatched, ...] = ()


class DirectSampling(Struct, frozen=True, kw_only=True):
    """A set of prompts answered by the candidate itself, and by the version in service.

    One entry per prompt in ``slices``, ``must``, ``candidate`` and ``incumbent``: whether the
    answer was as expected. ``prompts`` is the sha256 of the set, ``unanswered`` how many of the
    candidate's answers did not come and ``incumbent_unanswered`` how many of the other's.
    """

    prompts: str
    slices: tuple[str, ...]
    must: tuple[bool, ...]
    candidate: tuple[bool, ...]
    incumbent: tuple[bool, ...]
    unanswered: int = 0
    incumbent_unanswered: int = 0


class GateReport(Struct, frozen=True, kw_only=True):
    """What the gate found about a version; `report_path` says where it is stored.

    ``reasons`` is empty when nothing speaks against the version; ``waived`` says why it went on
    although something did. ``thresholds`` are the settings it was held to.
    """

    format: Literal[1] = 1
    policy: str
    version: str
    sequence: int
    incumbent: str
    time: datetime
    reasons: tuple[str, ...]
    evidence: ReleaseEvidence | None
    regression: DirectSampling | None
    red_team: DirectSampling | None
    thresholds: dict[str, Any]
    waived: str = ""

    @property
    def refused(self) -> bool:
        """Whether the version stays out."""
        return bool(self.reasons) and not self.waived


def report_path(state_dir: Path, policy: str, version: str) -> Path:
    """Return where the gate's report on a version lies; versions themselves never change."""
    return state_dir / "gate" / policy / f"{version}.json"


def write_report(state_dir: Path, report: GateReport) -> Path:
    """Write the report as one whole and return where."""
    path = report_path(state_dir, report.policy, report.version)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_bytes(msgspec.json.format(to_json(report), indent=2))
    partial.replace(path)
    return path


def read_report(state_dir: Path, policy: str, version: str) -> GateReport | None:
    """Return the gate's report on a version, None when there is none that can be read."""
    try:
        raw = report_path(state_dir, policy, version).read_bytes()
        return msgspec.json.decode(raw, type=GateReport)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError):
        return None


def reports_of(state_dir: Path) -> list[tuple[str, str]]:
    """Return (policy, version) of every report that is stored, sorted."""
    return sorted((path.parent.name, path.stem) for path in (state_dir / "gate").glob("*/*.json"))


def write_evidence(directory: Path, evidence: ReleaseEvidence) -> None:
    """Write ``evidence.json`` into a version directory that is being made."""
    (directory / EVIDENCE_NAME).write_bytes(msgspec.json.format(to_json(evidence), indent=2))


def read_evidence(directory: Path) -> ReleaseEvidence | None:
    """Return a version's evidence, None when it has none; ManifestError when it is unreadable."""
    path = directory / EVIDENCE_NAME
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReleaseEvidence)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise ManifestError(f"{path} is no evidence: {error}; publish the version again") from error
