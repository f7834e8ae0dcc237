"""The whole tree of settings, and how one policy sees it."""

from __future__ import annotations

from pathlib import Path

from msgspec import field
from msgspec.structs import replace

from contracts.errors import SettingsError
from contracts.settings.guard import Guard
from contracts.settings.learner import Gate, Learner
from contracts.settings.rollout import Rollout
from contracts.settings.section import Count, Section
from contracts.settings.serving import Engine, Gateway, Policy, Segment
from contracts.settings.streams import Features, Streams


class Kafka(Section, frozen=True):
    """The broker. ``bootstrap`` empty: the local stack starts its own."""

    bootstrap: str = ""
    prefix: str = ""
    partitions: Count = 4
    replication: Count = 1


class Tracing(Section, frozen=True):
    """Spans. ``otlp_endpoint`` empty: spans go to files below ``state_dir``."""

    otlp_endpoint: str = ""
    content: bool = False


class Settings(Section, frozen=True):
    """The whole tree."""

    state_dir: Path = Path(".headrace")
    data_dir: Path = Path("../shared/data")
    kafka: Kafka = Kafka()
    policy: Policy = Policy()
    engine: Engine = Engine()
    gateway: Gateway = Gateway()
    guard: Guard = field(default_factory=Guard)
    streams: Streams = field(default_factory=Streams)
    features: Features = Features()
    learner: Learner = Learner()
    rollout: Rollout = Rollout()
    gate: Gate = Gate()
    segments: tuple[Segment, ...] = ()
    tracing: Tracing = Tracing()


def policies_of(settings: Settings) -> tuple[str, ...]:
    """Return the names of all policies: the general one first, then those of the segments."""
    names = [settings.policy.name, *(segment.policy for segment in settings.segments)]
    return tuple(dict.fromkeys(names))


def settings_for(settings: Settings, policy: str) -> Settings:
    """Return the settings as the processes of one policy see them: its name, its rollout plan, and
    a reward model that it does not share, since another policy's judges may have taught that.

    Raises SettingsError for a policy that neither the general name nor a segment names.
    """
    known = policies_of(settings)
    if policy not in known:
        raise SettingsError(f"policy {policy!r} is not one of {', '.join(known)}; name a segment's")
    if policy == settings.policy.name:
        return settings
    own = [segment for segment in settings.segments if segment.policy == policy]
    rollout = next((s.rollout for s in own if s.rollout is not None), settings.rollout)
    reward_model = next((s.reward_model for s in own if s.reward_model), "")
    return replace(
        settings,
        policy=replace(settings.policy, name=policy),
        learner=replace(settings.learner, reward_model=reward_model),
        rollout=rollout,
    )


def process_for(settings: Settings, process: str, policy: str) -> str:
    """Return the name of one policy's process, e.g. "rollout", or "rollout.NAME" of a segment's."""
    return process if policy == settings.policy.name else f"{process}.{policy}"
