"""Settings from a YAML file and the environment, and back into a child process's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from contracts.errors import SettingsError
from contracts.settings.checks import check_settings
from contracts.settings.tree import Settings

PREFIX = "HEADRACE_"
SECRETS = (("gateway", "feedback_secret"), ("engine", "key"), ("engine", "admin_key"))


def load_settings(
    path: Path | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Read settings from a YAML file and the environment.

    ``path`` None means ``headrace.yaml`` in the working directory, if there. Raises SettingsError
    with the place, the value and what is allowed.
    """
    source = path or Path("headrace.yaml")
    tree: Any = {}
    if path is not None or source.exists():
        try:
            tree = msgspec.yaml.decode(source.read_bytes()) or {}
        except FileNotFoundError as error:
            raise SettingsError(f"{source} does not exist; give the path of a YAML file") from error
        except OSError as error:
            why = error.strerror or error
            raise SettingsError(f"{source} cannot be read ({why}); give a YAML file") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise SettingsError(f"{source} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise SettingsError(f"{source} holds a {type(tree).__name__}; it must be a mapping")
    _refuse_secrets(tree, source)
    environment = os.environ if environment is None else environment
    for name, text in environment.items():
        if name.startswith(PREFIX):
            _override(tree, name, text)
    try:
        settings = msgspec.convert(tree, Settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{source} and environment: {error}") from error
    check_settings(settings)
    return settings


def _refuse_secrets(tree: dict[str, Any], source: Path) -> None:
    for section, name in SECRETS:
        inner = tree.get(section)
        if isinstance(inner, dict) and name in inner:
            raise SettingsError(
                f"{source} holds {section}.{name}; secrets come from the environment alone: "
                f"set {PREFIX}{section.upper()}__{name.upper()}"
            )


def to_environment(settings: Settings) -> dict[str, str]:
    """Return the environment that makes `load_settings` give these settings in a child process."""
    found: dict[str, str] = {}
    for name, value in msgspec.to_builtins(settings, enc_hook=str).items():
        if isinstance(value, dict):
            for inner, leaf in value.items():
                if leaf is None:
                    continue  # the default of every setting that may be null
                found[f"{PREFIX}{name}__{inner}".upper()] = _text(leaf)
        else:
            found[f"{PREFIX}{name}".upper()] = _text(value)
    return found


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"settings hold no {kind}")


def _text(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return msgspec.json.encode(value).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _override(tree: dict[str, Any], name: str, text: str) -> None:
    steps = name.removeprefix(PREFIX).lower().split("__")
    hints = get_type_hints(Settings)
    if steps[0] not in hints:
        raise SettingsError(f"{name} names no setting; sections: {', '.join(sorted(hints))}")
    value: Any = text
    if text[:1] in ("{", "[") and not _is_text(steps):
        try:
            value = msgspec.json.decode(text.encode())
        except msgspec.DecodeError as error:
            raise SettingsError(f"{name}={text!r} is not JSON: {error}") from error
    place = tree
    for step in steps[:-1]:
        inner = place.get(step)
        if not isinstance(inner, dict):
            inner = place[step] = {}
        place = inner
    place[steps[-1]] = value


def _is_text(steps: list[str]) -> bool:
    """Whether the setting is a string or a path, where a leading bracket is only a character."""
    hint: Any = Settings
    for step in steps:
        if isinstance(hint, type) and issubclass(hint, Struct):
            hint = get_type_hints(hint).get(step)
        else:
            hint = get_args(hint)[1] if get_origin(hint) is dict else None
    return hint in (str, Path)
