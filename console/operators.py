"""Who gives a command and why, as the audit is told."""

from __future__ import annotations

from getpass import getuser

from contracts.errors import SettingsError

LONGEST_REASON = 2000


def checked_reason(text: str, option: str) -> str:
    """Return a person's reason without white space around it.

    SettingsError when it says nothing or too much; ``option`` is where it was given.
    """
    reason = text.strip()
    if not 1 <= len(reason) <= LONGEST_REASON:
        raise SettingsError(f"{option} has {len(reason)} characters; give 1 to {LONGEST_REASON}")
    return reason


def operator_name(given: str) -> str:
    """Return the operator's name: as given, else the login name; SettingsError without either."""
    try:
        return given.strip() or getuser()
    except (KeyError, OSError) as error:
        raise SettingsError("this process has no login name; give --operator NAME") from error
