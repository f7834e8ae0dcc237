"""The environment of child processes; each secret, and where one lies, only where it is needed."""

from __future__ import annotations

import os

from contracts.settings import PREFIX, SECRETS, Settings, to_environment

FEEDBACK_SECRET = f"{PREFIX}GATEWAY__FEEDBACK_SECRET"
ENGINE_KEY = f"{PREFIX}ENGINE__KEY"
ENGINE_ADMIN_KEY = f"{PREFIX}ENGINE__ADMIN_KEY"
SIGNING_KEY_FILE = f"{PREFIX}LEARNER__SIGNING_KEY_FILE"
_SECRETS = {SIGNING_KEY_FILE} | {f"{PREFIX}{section}__{name}".upper() for section, name in SECRETS}


def inherited_environment() -> dict[str, str]:
    """Return our own environment without any secret."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}


def public_settings(settings: Settings) -> dict[str, str]:
    """Return the settings as environment variables, without any secret."""
    return with_secrets(settings)


def with_secrets(settings: Settings, *names: str) -> dict[str, str]:
    """Return the settings as environment variables, with those secrets that are named."""
    withheld = _SECRETS.difference(names)
    return {n: text for n, text in to_environment(settings).items() if n not in withheld}
