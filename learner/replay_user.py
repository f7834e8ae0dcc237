"""Finds where a user first comes into what a line of versions has read.

The ledgers say so, for as long as they name users; of older versions only the log can tell, as far
back as the broker has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from msgspec import Struct

from contracts.broker import Received
from contracts.events import BASE_VERSION
from contracts.settings import Settings
from learner.intake import sample_of
from learner.replay_log import LogPart, Waiting
from learner.version_line import Link

Say = Callable[[int, LogPart], None]


class Presence(Struct, frozen=True):
    """The offset of a user's first known sample, None where there is none; ``certain``: nothing
    that was read is missing from where it was looked for, a log that begins at offset ``begins``
    and the ledgers."""

    first: int | None
    certain: bool
    begins: int


def presence(
    settings: Settings,
    line: Sequence[Link],
    user: str,
    until: int,
    say: Say,
    waiting: Waiting = nullcontext,
) -> Presence:
    """Return where the user first is in what the line has read before offset ``until``."""
    whole = line[0].manifest.parent == BASE_VERSION
    read = [link for link in line if link.first < until]
    lines = [outcome for link in read for outcome in link.ledger() if outcome.offset < until]
    named = min((o.offset for o in lines if o.user_id == user), default=None)
    told = whole and all(outcome.user_id for outcome in lines)
    if told:
        until = min(until, line[0].silent_until)
        if until <= line[0].first:
            return Presence(named, certain=True, begins=0)
    log = LogPart(settings.kafka, 0, until, waiting)
    certain = whole and log.begins <= line[0].begins
    if log.begins < until:
        for record in log.records():
            say(record.offset, log)
            if is_of_user(record, settings.policy.name, user):
                named = min(record.offset, record.offset if named is None else named)
                break
    return Presence(named, certain, log.begins)


def is_of_user(record: Received, policy: str, user: str) -> bool:
    """Tell whether a record is a sample of this user under this policy."""
    sample = sample_of(record)
    if sample is None:
        return False
    return sample.user_id == user and sample.assignment.policy == policy
