"""The reward of a decision: one component per signal, each with its value, weight and origin.

It knows nothing of windows or topics: it is given the `Evidence` on a decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from contracts.codec import to_json
from contracts.events import Component, Decision, Message, Preference, Reward, Sample
from contracts.ids import derived_id
from contracts.settings import OF_THE_POLICY, RewardComponent, Streams
from streams.evidence import Evidence
from streams.safety import chosen_action, chosen_answer, replaced_by_guard
from streams.signals import (
    ACCOMPANYING,
    BUILT_IN,
    Signal,
    SignalFunction,
    checked,
    load_signals,
)


class Rewarding(Struct, frozen=True):
    """How rewards are made: the declared components with their functions, and the default."""

    components: Mapping[str, tuple[RewardComponent, SignalFunction]]
    default: float | None = None

    def built_in(self) -> Rewarding:
        """Return the same rules without the signals of other packages."""
        own = {name: part for name, part in self.components.items() if name in BUILT_IN}
        return Rewarding(own, self.default)


def rewarding(settings: Streams) -> Rewarding:
    """Return the rules that settings declare; SettingsError for a signal that does not load."""
    functions = load_signals(settings.reward)
    return Rewarding(
        {name: (component, functions[name]) for name, component in settings.reward.items()},
        settings.default_reward,
    )


def reward_of(evidence: Evidence, rules: Rewarding, now: datetime, revision: int = 0) -> Reward:
    """Return the reward: final when a signal came, else the declared default, else censored.

    Its id follows from what it says: the same reward sent twice is the same event.
    """
    components = tuple(
        Component(
            name=name,
            value=clip(signal.value, component.clip),
            weight=component.weight,
            rule=signal.rule,
            event_ids=signal.event_ids,
        )
        for name, component, signal in _signals(evidence, rules)
    )
    decision = evidence.decision
    status: Literal["final", "default", "censored"] = "censored"
    value: float | None = None
    if any(component.name not in ACCOMPANYING for component in components):
        total = sum(component.value * component.weight for component in components)
        status, value = "final", clip(total, 1.0)
    elif rules.default is not None and not replaced_by_guard(decision):
        status, value = "default", rules.default
    if status != "final":
        components = ()
    made = Reward(
        id="reward",
        time=now,
        decision_id=decision.id,
        session_id=decision.session_id,
        user_id=decision.user_id,
        assignment=decision.assignment,
        revision=revision,
        status=status,
        value=value,
        components=components,
        decided_at=decision.time,
    )
    return replace(made, id=derived_id(decision.id, "reward", str(revision), content(made)))


def content(reward: Reward) -> str:
    """Return the hash of what a reward says, whatever its revision and time."""
    said = [reward.status, reward.value, reward.components]
    return sha256(to_json(said)).hexdigest()[:16]


def _signals(evidence: Evidence, rules: Rewarding) -> list[tuple[str, RewardComponent, Signal]]:
    """Return the signals there are.

    Where the guard spoke in the policy's place, what was said about that is not about the policy.
    """
    replaced = replaced_by_guard(evidence.decision)
    found = []
    for name, (component, function) in rules.components.items():
        if replaced and name not in OF_THE_POLICY:
            continue
        signal = function(evidence, component)
        if signal is None:
            continue
        found.append((name, component, checked(name, signal)))
    return found


def sample_of(
    evidence: Evidence,
    reward: Reward,
    correction: Message | None = None,
    *,
    withdrawn: bool = False,
    send_censored: bool = False,
) -> Sample | None:
    """Return the training sample of a rewarded decision; None when censored or without tokens.

    A reply by rule has no tokens: nobody drew it, so nobody learns from it. With ``send_censored``
    a decision without a reward has a sample, too; where the guard spoke in the policy's place only
    if what that drew was a violation, which nothing else would tell the learner.

    ``correction`` is the answer to imitate, None when there is none that may be. ``withdrawn``: the
    decision had a reward and has none any more, and whoever learned from it must be told.
    """
    decision, now = evidence.decision, reward.time
    own = evidence.safety.violation or not replaced_by_guard(decision)
    sent_without = withdrawn or (send_censored and own)
    if not is_learnable(decision) or (reward.value is None and not sent_without):
        return None
    newest_time = max((heard.event.time for heard in evidence.heard), default=decision.time)
    return Sample(
        id=derived_id(reward.id, "sample"),
        time=now,
        decision_id=decision.id,
        reward_id=reward.id,
        session_id=decision.session_id,
        user_id=decision.user_id,
        assignment=decision.assignment,
        revision=reward.revision,
        messages=decision.messages,
        action=chosen_action(decision),
        prompt_token_ids=decision.prompt_token_ids,
        token_ids=decision.token_ids,
        logprobs=decision.logprobs if logprobs_are_usable(decision) else (),
        temperature=decision.sampling.temperature,
        max_tokens=decision.sampling.max_tokens,
        reward=reward.value or 0.0,
        status=reward.status,
        withdrawn=withdrawn,
        violation=evidence.safety.violation,
        correction=correction,
        features=decision.features,
        signals={part.name: part.value * part.weight for part in reward.components},
        decided_at=decision.time,
        # Clocks differ: feedback is never older than its decision, nor newer than the present.
        feedback_time=max(decision.time, min(newest_time, now)),
    )


def preference_of(evidence: Evidence, reward: Reward, correction: Message) -> Preference | None:
    """Return the pair that a correction makes: the person's answer over the policy's own.

    None when they are the same, or when nobody drew the answer.
    """
    decision, rejected = evidence.decision, chosen_answer(evidence.decision)
    now = reward.time
    if not is_learnable(decision) or _says(rejected) == _says(correction):
        return None
    event = evidence.newest("correction")
    return Preference(
        id=derived_id(reward.id, "preference"),
        time=now,
        decision_id=decision.id,
        feedback_id=event.id if event else "",
        session_id=decision.session_id,
        user_id=decision.user_id,
        assignment=decision.assignment,
        revision=reward.revision,
        messages=decision.messages,
        chosen=correction,
        rejected=rejected,
        prompt_token_ids=decision.prompt_token_ids,
        rejected_token_ids=decision.token_ids,
        rejected_logprobs=decision.logprobs if logprobs_are_usable(decision) else (),
        decided_at=decision.time,
        feedback_time=max(decision.time, min(event.time if event else decision.time, now)),
    )


def is_learnable(decision: Decision) -> bool:
    """Say whether the policy drew the answer, token by token."""
    return decision.rung != "rule" and bool(decision.token_ids)


def logprobs_are_usable(decision: Decision) -> bool:
    """Say whether the logged log-probabilities are those of the distribution sampled from.

    Truncated (top-p, top-k) and greedy sampling draw from another one, and importance weights
    need one value per token.
    """
    sampling = decision.sampling
    return (
        sampling.top_p == 1.0
        and sampling.top_k == 0
        and sampling.temperature > 0.0
        and len(decision.logprobs) == len(decision.token_ids)
    )


def clip(value: float, bound: float) -> float:
    """Return the value limited to [-bound, bound]."""
    return max(-bound, min(bound, value))


def _says(message: Message) -> bytes:
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
    return msgspec.json.encode([message.content, calls])
