"""The environment of child processes; the feedback secret is for the gateway alone."""

from __future__ import annotations

import os

from contracts.settings import Settings, to_environment

SECRET = "HEADRACE_GATEWAY__FEEDBACK_SECRET"  # noqa: S105 - the name of a variable


def inherited_environment() -> dict[str, str]:
    """Return our own environment without the feedback secret."""
    return {name: value for name, value in os.environ.items() if name != SECRET}


def public_settings(settings: Settings) -> dict[str, str]:
    """Return the settings as environment variables, without the feedback secret."""
    return {name: text for name, text in to_environment(settings).items() if name != SECRET}
