"""Reads what a reward model learns from out of the log of samples; knows nothing of torch.

Users who judge are left out: what they rated is what its answers are held against.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from msgspec import Struct

from contracts.broker import Received, events_to_end
from contracts.errors import UnavailableError
from contracts.events import Event, Preference, Sample
from contracts.judges import is_judge
from contracts.settings import Policy, Settings
from contracts.topics import SAMPLES
from learner.assistant_turn import correction_ids
from learner.buckets import TokenSequence
from learner.reward_training import Pair, Rated, RewardLesson
from learner.turns import newest_in_turns

LEAST_LESSONS = 60
"""With fewer there is too little to calibrate on, and nothing could be told of the errors."""

LEAST_USERS = 5
"""Members draw users: with fewer they nearly agree, and what is unknown looks certain."""


class Read(Struct, frozen=True, kw_only=True):
    """Lessons, oldest first, and which records of ``samples`` they come from."""

    lessons: tuple[RewardLesson, ...]
    first_offset: int
    next_offset: int
    as_of: datetime
    newest_feedback_time: datetime


class _Found(Struct, frozen=True):
    offset: int
    event: Sample | Preference


def read_lessons(settings: Settings, tokenizer: Any, vocabulary: int, limit: int) -> Read:
    """Return at most ``limit`` lessons of the log now, the newest of each user.

    UnavailableError when there are fewer than 60, or fewer than 5 users taught them, DeadlineError
    when the broker goes away.
    """
    records = events_to_end(settings.kafka, (SAMPLES,), "headrace-reward-model")
    return lessons_of(records, settings.policy, tokenizer, vocabulary, limit)


def lessons_of(
    records: Iterable[tuple[Received, Event]],
    policy: Policy,
    tokenizer: Any,
    vocabulary: int,
    limit: int,
) -> Read:
    """Return at most ``limit`` lessons of a policy in these records; see `read_lessons`.

    Of a decision the last sample and the last preference hold, and neither once it was withdrawn.
    A reward that nobody gave, the default of those who keep silent, is no lesson. Users take turns,
    so that whoever says much does not push out the others.
    """
    held = _last_words(records, policy, limit)
    lessons = [(found, _lesson(found.event, tokenizer, vocabulary)) for found in held]
    usable = [(found, lesson) for found, lesson in lessons if lesson is not None]
    users = [found.event.user_id for found, _ in usable]
    chosen = [usable[place] for place in newest_in_turns(users, limit)]
    if len(chosen) < LEAST_LESSONS or len(set(users)) < LEAST_USERS:
        raise UnavailableError(
            f"{len(chosen)} rewarded answers and pairs of policy {policy.name!r} in the log, by "
            f"{len(set(users))} users; at least {LEAST_LESSONS} by {LEAST_USERS} users are needed: "
            "make the reward model when more was rated"
        )
    return Read(
        lessons=tuple(lesson for _, lesson in chosen),
        first_offset=min(found.offset for found, _ in chosen),
        next_offset=max(found.offset for found, _ in chosen) + 1,
        as_of=max(found.event.decided_at for found, _ in chosen),
        newest_feedback_time=max(found.event.feedback_time for found, _ in chosen),
    )


def _last_words(
    records: Iterable[tuple[Received, Event]], policy: Policy, limit: int
) -> list[_Found]:
    """Return what was last said of each decision: of 2·``limit`` and more the newest in turns."""
    held: dict[tuple[str, str], _Found] = {}
    for record, event in records:
        if not isinstance(event, Sample | Preference) or event.assignment.policy != policy.name:
            continue
        if is_judge(policy.name, event.user_id, policy.judge_share):
            continue
        key = (event.TYPE, event.decision_id)
        held.pop(key, None)
        if isinstance(event, Sample) and (event.withdrawn or event.status != "final"):
            held.pop((Preference.TYPE, event.decision_id), None)
            continue
        if isinstance(event, Sample) and event.correction is None:
            held.pop(
                (Preference.TYPE, event.decision_id), None
            )  # one that holds follows its sample
        held[key] = _Found(record.offset, event)
        if len(held) >= 4 * limit:  # some of them may turn out to be no lesson
            items = list(held.items())
            users = [found.event.user_id for found in held.values()]
            held = dict(items[place] for place in newest_in_turns(users, 2 * limit))
    return list(held.values())


def _lesson(event: Sample | Preference, tokenizer: Any, vocabulary: int) -> RewardLesson | None:
    """Return what an event teaches, None when its tokens are missing or unknown to the base."""
    if isinstance(event, Sample):
        answer = _known(event.prompt_token_ids, event.token_ids, vocabulary)
        return Rated(event.user_id, answer, event.reward) if answer else None
    wanted = correction_ids(tokenizer, event.chosen)
    chosen = _known(event.prompt_token_ids, wanted, vocabulary)
    rejected = _known(event.prompt_token_ids, event.rejected_token_ids, vocabulary)
    return Pair(event.user_id, chosen, rejected) if chosen and rejected else None


def _known(
    prompt: tuple[int, ...], response: tuple[int, ...], vocabulary: int
) -> TokenSequence | None:
    ids = (*prompt, *response)
    if not prompt or not response or min(ids) < 0 or max(ids) >= vocabulary:
        return None
    return TokenSequence(prompt, response)
