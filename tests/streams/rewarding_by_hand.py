"""Rewards of decisions made by hand, without windows or topics."""

from __future__ import annotations

from typing import Any

from contracts.clock import ManualClock
from contracts.events import Decision, Feedback, Reward, Safety
from contracts.settings import RewardComponent, Settings, Streams
from guard.rules import compile_rules
from streams.evidence import Evidence, heard_by, in_force
from streams.reward import reward_of, rewarding
from streams.safety import judge
from streams.waits import waits_of

NOW = ManualClock().now()


def safety_of(decision: Decision) -> Safety:
    return judge(compile_rules(Settings()))(decision, NOW)


def evidence_on(
    decision: Decision,
    *feedback: Feedback,
    following: Decision | None = None,
    streams: Streams | None = None,
) -> Evidence:
    waits = waits_of(streams or Streams())
    moments = sorted((d.time, d.id) for d in (decision, following) if d is not None)
    return Evidence(
        decision=decision,
        safety=safety_of(decision),
        window_seconds=waits.window_seconds,
        heard=heard_by(decision, moments, in_force(feedback, waits), waits),
        following=following,
    )


def rewarded(
    decision: Decision,
    *feedback: Feedback,
    following: Decision | None = None,
    streams: Streams | None = None,
    **weights: Any,
) -> Reward:
    streams = streams or (Streams(reward=weights) if weights else Streams())
    evidence = evidence_on(decision, *feedback, following=following, streams=streams)
    return reward_of(evidence, rewarding(streams), NOW)


def component(weight: float = 1.0, **fields: Any) -> RewardComponent:
    return RewardComponent(weight=weight, **fields)
