"""One frozen tree of settings, read once from ``headrace.yaml`` and the environment.

Every value can come from the environment: ``HEADRACE_`` + path in capitals, joined by two
underscores, e.g. ``HEADRACE_STREAMS__WINDOW_SECONDS=30``. The environment wins over the file.
Secrets come from the environment alone.
"""

from __future__ import annotations

from contracts.settings.checks import check_addresses, redis_servers
from contracts.settings.learner import Constraint, Gate, Learner, Practice, Watch
from contracts.settings.loading import PREFIX, SECRETS, load_settings, to_environment
from contracts.settings.rollout import Rollout
from contracts.settings.serving import Engine, Gateway, Key, Policy, PolicyName, Segment
from contracts.settings.streams import (
    OF_THE_POLICY,
    SIGNALS,
    SIGNALS_GROUP,
    DisallowedTopic,
    Features,
    Quarantine,
    QuestionTopic,
    RewardComponent,
    Streams,
)
from contracts.settings.tree import Kafka, Settings, Tracing, policies_of, process_for, settings_for

__all__ = [
    "OF_THE_POLICY",
    "PREFIX",
    "SECRETS",
    "SIGNALS",
    "SIGNALS_GROUP",
    "Constraint",
    "DisallowedTopic",
    "Engine",
    "Features",
    "Gate",
    "Gateway",
    "Kafka",
    "Key",
    "Learner",
    "Policy",
    "PolicyName",
    "Practice",
    "Quarantine",
    "QuestionTopic",
    "RewardComponent",
    "Rollout",
    "Segment",
    "Settings",
    "Streams",
    "Tracing",
    "Watch",
    "check_addresses",
    "load_settings",
    "policies_of",
    "process_for",
    "redis_servers",
    "settings_for",
    "to_environment",
]
