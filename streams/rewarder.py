"""Gives a decision its reward, sample and preference, and anew when the reward changed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from traceback import format_tb
from typing import Any

from msgspec.structs import replace

from contracts.events import Decision, Message, Reward, Safety
from contracts.settings import Streams
from contracts.topics import REWARDS, SAMPLES
from contracts.tracing import span
from streams.attribution import Attribution
from streams.evidence import Evidence
from streams.reward import content, preference_of, reward_of, rewarding, sample_of
from streams.safety import as_if_answered, replaced_by_guard
from streams.session import Turn
from streams.step import Step
from streams.trail import Trail, rules_of

_log = logging.getLogger(__name__)

RE_ASK = "re-ask"
"""Name of the signal whose rate is kept as a feature."""

Judge = Callable[[Decision, datetime], Safety]


class Rewarder:
    """Knows the declared signals; ``counts`` are those of the worker."""

    def __init__(self, settings: Streams, judge: Judge, trail: Trail, counts: Counter[str]) -> None:
        self._rules, self._judge, self._trail = rewarding(settings), judge, trail
        self._counts = counts
        self._send_censored = settings.send_censored

    def close(self, step: Step, partition: Attribution, turn: Turn, now: datetime) -> None:
        """Give the first reward of a decision whose window has closed."""
        evidence = self._evidence(partition, turn)
        turn.reports = partition.sessions[turn.decision.session_id].reports_of(turn)
        self._give(step, turn, evidence, self._reward(step, evidence, now, revision=0))
        step.closed.append((partition, turn))
        self._counts["rewards"] += 1

    def revise(self, step: Step, partition: Attribution, turn: Turn, now: datetime) -> bool:
        """Give the reward anew when what is known now makes another one; say whether it does."""
        evidence = self._evidence(partition, turn)
        turn.reports = partition.sessions[turn.decision.session_id].reports_of(turn)
        reward = self._reward(step, evidence, now, turn.revision + 1)
        if content(reward) == turn.content:
            return False
        self._give(step, turn, evidence, reward)
        self._counts["revisions"] += 1
        return True

    def _evidence(self, partition: Attribution, turn: Turn) -> Evidence:
        session = partition.sessions[turn.decision.session_id]
        return session.evidence(turn, partition.waits)

    def _give(self, step: Step, turn: Turn, evidence: Evidence, reward: Reward) -> None:
        decision, now = turn.decision, reward.time
        was_rewarded = turn.value is not None or (turn.revision < 0 and turn.again)
        withdrawn = was_rewarded and reward.value is None
        with span("reward", parent=turn.trace, attributes={"headrace.decision.id": decision.id}):
            correction, withheld = self._correction(evidence, now)
            sample = sample_of(
                evidence,
                reward,
                correction,
                withdrawn=withdrawn,
                send_censored=self._send_censored,
            )
            sent = sample is not None and step.send(SAMPLES, sample)
            if correction is not None:
                self._prefer(step, evidence, reward, correction)
            step.send(REWARDS, reward)
            sample_id = sample.id if sample is not None and sent else None
            self._trail.closed(step, evidence, reward, sample_id, withheld)
        turn.revision, turn.content = reward.revision, content(reward)
        turn.value, turn.status = reward.value, reward.status
        turn.re_asked = any(p.name == RE_ASK and p.value < 0 for p in reward.components)
        self._counts["samples"] += sent
        self._counts["corrections_withheld"] += withheld is not None

    def _reward(self, step: Step, evidence: Evidence, now: datetime, revision: int) -> Reward:
        try:
            return reward_of(evidence, self._rules, now, revision)
        except Exception as error:  # noqa: BLE001 - poison feedback, or a plug-in, must not stop the others
            tell_failure(f"reward of {evidence.decision.id}", error)
            self._trail.failed(step, evidence.decision, error)
        with suppress(Exception):  # then it was a signal of another package: the feedback holds
            return reward_of(evidence, self._rules.built_in(), now, revision)
        return reward_of(replace(evidence, heard=()), self._rules.built_in(), now, revision)

    def _correction(
        self, evidence: Evidence, now: datetime
    ) -> tuple[Message | None, dict[str, Any] | None]:
        """Return the answer to imitate, and what the audit says when it may not be.

        A correction is judged as if it had been the answer: the learner imitates no violation. One
        of what the guard said in the policy's place is not about the policy.
        """
        event = evidence.newest("correction")
        if event is None or event.correction is None or replaced_by_guard(evidence.decision):
            return None, None
        try:
            safety = self._judge(as_if_answered(evidence.decision, event.correction), now)
        except Exception as error:  # noqa: BLE001 - a poison correction must not stop the others
            tell_failure(f"correction {event.id}", error)
            return None, {"feedback_id": event.id, "findings": [type(error).__name__]}
        if not safety.violation:
            return event.correction, None
        return None, {"feedback_id": event.id, "findings": rules_of(safety.findings)}

    def _prefer(self, step: Step, evidence: Evidence, reward: Reward, correction: Message) -> None:
        preference = preference_of(evidence, reward, correction)
        if preference is not None and step.send(SAMPLES, preference):
            self._counts["preferences"] += 1


def tell_failure(what: str, error: Exception) -> None:
    """Log where an error arose; its message may quote what people wrote."""
    frames = "".join(format_tb(error.__traceback__))
    _log.error("%s failed: %s\n%s", what, type(error).__name__, frames)
