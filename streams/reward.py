"""The reward of a decision: one component per signal, each with its value, weight and origin.

It knows nothing of windows or topics: it is given a decision, its safety and its feedback.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from statistics import fmean

import msgspec

from contracts.events import (
    Component,
    Decision,
    Feedback,
    Message,
    Reward,
    Safety,
    Sample,
    text_of,
)
from contracts.ids import derived_id
from contracts.settings import RewardComponent, RewardSignal
from streams.safety import chosen_action, replaced_by_guard

MAX_WORDS = 2000
"""Words compared of an answer and its correction: the work grows with their product."""

Signal = tuple[RewardSignal, float, str, tuple[str, ...]]
"""Name, value in [-1, 1], rule, ids of the events behind it."""


def reward_of(
    decision: Decision,
    safety: Safety,
    feedback: Sequence[Feedback],
    weights: Mapping[RewardSignal, RewardComponent],
    now: datetime,
    revision: int = 0,
) -> Reward:
    """Return the reward: final when a signal with a weight came, else censored."""
    components = tuple(
        Component(
            name=name,
            value=clip(value, weights[name].clip),
            weight=weights[name].weight,
            rule=rule,
            event_ids=event_ids,
        )
        for name, value, rule, event_ids in signals(decision, safety, feedback)
        if name in weights
    )
    total = sum(component.value * component.weight for component in components)
    return Reward(
        id=derived_id(decision.id, "reward", str(revision)),
        time=now,
        decision_id=decision.id,
        session_id=decision.session_id,
        user_id=decision.user_id,
        assignment=decision.assignment,
        revision=revision,
        status="final" if components else "censored",
        value=clip(total, 1.0) if components else None,
        components=components,
        decided_at=decision.time,
    )


def signals(decision: Decision, safety: Safety, feedback: Sequence[Feedback]) -> Iterator[Signal]:
    """Yield the signals of a decision. Of one kind the newest event holds: one vote, not many.

    Where the guard spoke in the policy's place, what was said about that is not about the policy.
    """
    if replaced_by_guard(decision):
        feedback = ()
    if rating := newest(feedback, "rating"):
        yield "rating", rating.score or 0.0, "rating: newest score", (rating.id,)
    correction = newest(feedback, "correction")
    if correction is not None and correction.correction is not None:
        kept = similarity(decision.answer, correction.correction)
        yield "correction", 2 * kept - 1, "correction: 2 * share kept - 1", (correction.id,)
    outcomes = {event.name: event for event in sorted(_of(feedback, "outcome"), key=_age)}
    if outcomes:
        value = fmean(event.score or 0.0 for event in outcomes.values())
        ids = tuple(event.id for event in outcomes.values())
        yield "outcome", value, "outcome: mean of newest score per name", ids
    reports = sorted(_of(feedback, "report"), key=_age)
    if reports:
        yield "report", -1.0, "report: -1 when reported", tuple(event.id for event in reports)
    if safety.violation:
        yield "safety", -1.0, "safety: -1 on violation", (safety.id,)


def sample_of(
    decision: Decision,
    reward: Reward,
    safety: Safety,
    feedback: Sequence[Feedback],
    now: datetime,
    correction: Message | None = None,
) -> Sample | None:
    """Return the training sample of a rewarded decision; None when censored or without tokens.

    A reply by rule has no tokens: nobody drew it, so nobody learns from it.

    ``correction`` is the answer to imitate, None when there is none that may be.
    """
    if reward.value is None or decision.rung == "rule" or not decision.token_ids:
        return None
    newest_time = max((event.time for event in feedback), default=decision.time)
    return Sample(
        id=derived_id(decision.id, "sample", str(reward.revision)),
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
        reward=reward.value,
        violation=safety.violation,
        correction=correction,
        decided_at=decision.time,
        # Clocks differ: feedback is never older than its decision, nor newer than the present.
        feedback_time=max(decision.time, min(newest_time, now)),
    )


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


def similarity(answer: Message, wanted: Message) -> float:
    """Return the share of an answer that its correction kept, in [0, 1].

    That is twice the number of words kept in order over the number of words of both. Tool calls of
    the same names are compared by their arguments; another action keeps nothing.
    """
    if [call.function.name for call in answer.tool_calls] != [
        call.function.name for call in wanted.tool_calls
    ]:
        return 0.0
    said, corrected = _words(answer), _words(wanted)
    both = len(said) + len(corrected)
    return 2 * kept_in_order(said, corrected) / both if both else 1.0


def kept_in_order(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): each word of ``one``
    costs a few operations on integers of ``len(other)`` bits, so repeated words cost no more.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(other)) - 1
    unmatched = everywhere
    for word in one:
        hits = unmatched & places.get(word, 0)
        unmatched = ((unmatched + hits) | (unmatched - hits)) & everywhere
    return len(other) - unmatched.bit_count()


def newest(feedback: Sequence[Feedback], kind: str) -> Feedback | None:
    """Return the newest event of a kind; of simultaneous ones the one with the greatest id."""
    return max(_of(feedback, kind), key=_age, default=None)


def clip(value: float, bound: float) -> float:
    """Return the value limited to [-bound, bound]."""
    return max(-bound, min(bound, value))


def _words(message: Message) -> list[str]:
    words = text_of(message).split()
    for call in message.tool_calls:
        words += _canonical(call.function.arguments).split()
    return words[:MAX_WORDS]


def _canonical(arguments: str) -> str:
    """Return JSON arguments with keys in order and one space after each value."""
    try:
        parsed = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    spaced = msgspec.json.encode(parsed, order="sorted").decode()
    return spaced.replace(",", " , ").replace(":", " : ")


def _of(feedback: Sequence[Feedback], kind: str) -> list[Feedback]:
    return [event for event in feedback if event.kind == kind]


def _age(event: Feedback) -> tuple[datetime, str]:
    return event.time, event.id
