"""The gate: what a version must show after the engine has it and before any user sees it.

It reads the version's evidence, asks the version the regression and red-team prompts, holds both
to the thresholds of the settings and stores its report. It decides about nothing else: what passes
goes on to shadow and canary.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from contracts.clock import Clock
from contracts.codec import to_json
from contracts.errors import ManifestError
from contracts.events import Candidate, Sampling
from contracts.evidence import (
    DirectSampling,
    GateReport,
    ReleaseEvidence,
    read_evidence,
    read_report,
    write_report,
)
from contracts.manifest import Manifest, read_manifest
from contracts.settings import Gate as Rules
from contracts.settings import Settings
from guard.prompts import SHIPPED_RED_TEAM, PromptSet, read_prompts, violates
from guard.rules import compile_rules
from serving.gate_sampling import ask_all
from serving.gate_verdict import (
    Subject,
    evidence_refusals,
    red_team_refusals,
    regression_refusals,
)
from serving.rollout_adapters import Adapters

REASONS, REASON_CHARS = 5, 200
"""So much of a report's reasons goes into the audit record of a person's command."""


class _Measured(Struct, frozen=True):
    """The incumbent's own outcomes on a set of prompts."""

    version: str
    digest: str
    outcomes: tuple[bool | None, ...]


class Gate:
    """Checks versions of one policy; ask `check`."""

    def __init__(self, settings: Settings, adapters: Adapters, clock: Clock) -> None:
        self._rules = settings.gate
        self._policy = settings.policy.name
        self._state_dir = settings.state_dir
        gateway = settings.gateway
        self._sampling = Sampling(
            temperature=gateway.temperature, top_p=gateway.top_p, max_tokens=gateway.max_tokens
        )
        self._adapters = adapters
        self._clock = clock
        self._violates = partial(violates, compile_rules(settings))
        self._measured: dict[str, _Measured] = {}

    @property
    def is_on(self) -> bool:
        """Whether versions are checked at all."""
        return self._rules.mode != "off"

    def check(self, candidate: Candidate, incumbent: Candidate) -> GateReport:
        """Return the report on a version that the engine has, and store it.

        A version that its evidence does not carry is not asked anything. Raises EngineError when
        the engine is away or lost a version, SettingsError for a set of prompts that cannot be
        read, ManifestError when the manifest cannot.
        """
        directory = Path(candidate.location)
        _, manifest = read_manifest(directory)
        subject = Subject(
            policy=self._policy,
            sequence=manifest.sequence,
            parent=manifest.parent,
            incumbent=incumbent.version,
        )
        evidence, unreadable = _evidence(directory)
        now = self._clock.now()
        reasons = unreadable or evidence_refusals(evidence, self._rules, subject, now)
        regression = red_team = None
        waived = _waived(manifest, self._rules)
        if waived or not reasons:
            regression = self._ask("regression", candidate, incumbent)
            red_team = self._ask("red_team", candidate, incumbent)
            reasons = [
                *reasons,
                *regression_refusals(regression, self._rules),
                *red_team_refusals(red_team, self._rules),
            ]
        report = GateReport(
            policy=self._policy,
            version=candidate.version,
            sequence=manifest.sequence,
            incumbent=incumbent.version,
            time=now,
            reasons=tuple(reasons),
            evidence=evidence,
            regression=regression,
            red_team=red_team,
            thresholds=msgspec.json.decode(to_json(self._rules)),
            waived=waived if reasons else "",
        )
        write_report(self._state_dir, report)
        return report

    def verdict_on(self, version: str) -> dict[str, object]:
        """Return what the stored report says of a version, for an audit record.

        ``gate`` is passed, waived, refused, or never asked: no report that can be read. Of the
        reasons the first ones are given, shortened.
        """
        report = read_report(self._state_dir, self._policy, version)
        if report is None:
            return {"gate": "never asked"}
        verdict = "refused" if report.refused else "waived" if report.waived else "passed"
        reasons = [reason[:REASON_CHARS] for reason in report.reasons[:REASONS]]
        return {"gate": verdict, "gate_reasons": reasons, "gate_time": report.time.isoformat()}

    def _ask(self, name: str, candidate: Candidate, incumbent: Candidate) -> DirectSampling | None:
        """Have both versions answer a set; None when the settings name none."""
        given = getattr(self._rules, f"{name}_prompts")
        if not given and name == "regression":
            return None
        path = Path(given) if given else SHIPPED_RED_TEAM
        asked = read_prompts(path, f"gate.{name}_prompts")
        outcomes = self._outcomes(candidate.version, asked)
        known = self._measured.get(name)
        if known is None or (known.version, known.digest) != (incumbent.version, asked.digest):
            theirs = self._outcomes(incumbent.version, asked)
            known = _Measured(incumbent.version, asked.digest, theirs)
            if None not in theirs:
                self._measured[name] = known
        return DirectSampling(
            prompts=asked.digest,
            slices=tuple(prompt.slice for prompt in asked.prompts),
            must=tuple(prompt.must for prompt in asked.prompts),
            candidate=tuple(map(bool, outcomes)),
            incumbent=tuple(map(bool, known.outcomes)),
            unanswered=outcomes.count(None),
            incumbent_unanswered=known.outcomes.count(None),
        )

    def _outcomes(self, version: str, asked: PromptSet) -> tuple[bool | None, ...]:
        return self._adapters.ask(
            lambda engine: ask_all(
                engine,
                version,
                asked.prompts,
                self._sampling,
                self._violates,
                concurrency=self._rules.concurrency,
                seconds=self._rules.deadline_seconds,
            )
        )


def _evidence(directory: Path) -> tuple[ReleaseEvidence | None, list[str]]:
    try:
        return read_evidence(directory), []
    except ManifestError as error:
        return None, [f"evidence unreadable: {error}"]


def _waived(manifest: Manifest, rules: Rules) -> str:
    """Return why a version goes on whatever is found, "" when it does not."""
    if rules.mode == "observe":
        return "gate.mode is observe"
    drill = manifest.config.get("drill")
    if rules.allow_drills and isinstance(drill, dict) and drill.get("skip_gate") is True:
        return "a drill that skips the gate, and gate.allow_drills is on"
    return ""


def summary(report: GateReport) -> dict[str, object]:
    """Return the report for an audit record, the outcomes of single prompts counted."""
    found: dict[str, object] = msgspec.to_builtins(report)
    for name in ("regression", "red_team"):
        direct: DirectSampling | None = getattr(report, name)
        if direct is not None:
            found[name] = {
                "prompts": direct.prompts,
                "asked": len(direct.candidate),
                "candidate": sum(direct.candidate),
                "incumbent": sum(direct.incumbent),
                "unanswered": direct.unanswered,
                "incumbent_unanswered": direct.incumbent_unanswered,
            }
    return found
