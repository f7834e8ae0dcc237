"""Which versions a person can name: every one that the log tells of, by a prefix that is unique."""

from __future__ import annotations

from collections.abc import Iterable

from console.rollout_history import read_history
from contracts.broker import events_to_end
from contracts.errors import SettingsError
from contracts.events import BASE_VERSION, Event, Release, Rollout
from contracts.settings import Kafka
from contracts.topics import RELEASES, ROLLOUTS

CLIENT_ID = "headrace-rollout-versions"
ID_CHARS = 64


def full_version(kafka: Kafka, policy: str, text: str) -> str:
    """Return the one version whose id begins with ``text``; "" stays "".

    SettingsError when none does, or several do. A whole id is taken as it is: the controller may
    know a version that the log no longer tells of.
    """
    if not text or text == BASE_VERSION or len(text) == ID_CHARS:
        return text
    known = versions_named(_events(kafka), policy)
    known |= {line.version for line in read_history(kafka, policy)}
    return the_one(known, text)


def the_one(known: set[str], text: str) -> str:
    """Return the only id that begins with ``text``; SettingsError says which others there are."""
    found = sorted(version for version in known if version and version.startswith(text))
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(version[: len(text) + 8] for version in found[:5])
        raise SettingsError(f"{text!r} begins {len(found)} versions: {several}; give more of it")
    raise SettingsError(f"no version begins with {text!r}; see 'headrace releases list'")


def versions_named(events: Iterable[Event], policy: str) -> set[str]:
    """Return the versions that releases and rollout states of a policy name."""
    found = {BASE_VERSION}
    for event in events:
        if isinstance(event, Release) and event.policy == policy:
            found |= {event.version, event.parent}
        elif isinstance(event, Rollout) and event.policy == policy:
            found |= {event.stable.version, event.judged}
            found |= {event.candidate.version} if event.candidate else set()
    return found


def _events(kafka: Kafka) -> Iterable[Event]:
    return (event for _, event in events_to_end(kafka, (RELEASES, ROLLOUTS), CLIENT_ID))
