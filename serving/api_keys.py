"""API keys: who may ask, how often and how much. Only hashes of keys are kept.

A key is ``hr-NAME-SECRET`` with 256 random bits, so that a plain SHA-256 of it cannot be turned
back (a slow hash is for passwords, which people choose). The file has one line per key::

    NAME:SHA256:REQUESTS_PER_MINUTE [max_body=N] [concurrent=N] [tier=T] [language=L] [region=R]
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from contracts.errors import SettingsError

PREFIX = "hr-"
MAX_KEYS = 10_000

_LINE = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]{0,63}):(?P<sha256>[0-9a-f]{64}):(?P<rate>\d{1,7})")
_OPTIONS = ("max_body", "concurrent", "tier", "language", "region")
_UNKNOWN = "0" * 64


class Traits(Struct, frozen=True, kw_only=True):
    """What decides on a segment; empty where nothing is known."""

    tier: str = ""
    language: str = ""
    region: str = ""


class KeyEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key. 0 as ``max_body`` or ``concurrent``: as the gateway's settings say."""

    name: str
    sha256: str
    requests_per_minute: Annotated[int, Meta(ge=1)]
    max_body: Annotated[int, Meta(ge=0)] = 0
    concurrent: Annotated[int, Meta(ge=0)] = 0
    tier: Annotated[str, Meta(max_length=64)] = ""
    language: Annotated[str, Meta(max_length=64)] = ""
    region: Annotated[str, Meta(max_length=64)] = ""

    def traits(self) -> Traits:
        """Return what the key says of its holder's segment."""
        return Traits(tier=self.tier, language=self.language, region=self.region)


def make_key(name: str) -> tuple[str, str]:
    """Return a fresh key and its hash; the key is shown once and kept nowhere."""
    key = f"{PREFIX}{name}-{secrets.token_hex(32)}"
    return key, key_hash(key)


def key_hash(key: str) -> str:
    """Return the SHA-256 of a key, in hex."""
    return sha256(key.encode()).hexdigest()


def entry_of(keys: Mapping[str, KeyEntry], given: str) -> KeyEntry | None:
    """Return the entry a given key belongs to, None when it is nobody's.

    The name in it is public and finds the entry; the hash is compared in constant time.
    """
    name = given.removeprefix(PREFIX).rpartition("-")[0] if given.startswith(PREFIX) else ""
    entry = keys.get(name)
    fits = hmac.compare_digest(key_hash(given), entry.sha256 if entry else _UNKNOWN)
    return entry if fits else None


def read_keys(path: Path) -> dict[str, KeyEntry]:
    """Return the entries of a file by name; SettingsError names file, line and what is allowed."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"gateway.api_keys_file {path} cannot be read: {error}; "
            "make it with 'headrace keys add NAME'"
        ) from error
    found: dict[str, KeyEntry] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = _parse(line, f"{path}:{number}")
        if entry.name in found:
            raise SettingsError(f"{path}:{number}: {entry.name!r} is there twice; remove one")
        found[entry.name] = entry
    if len(found) > MAX_KEYS:
        raise SettingsError(f"{path} holds {len(found)} keys; at most {MAX_KEYS} are allowed")
    return found


def write_keys(path: Path, entries: Mapping[str, KeyEntry]) -> None:
    """Replace the file as one whole, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123 - made with its mode, so that nobody else can read it in between
        file.writelines(f"{line_of(entry)}\n" for entry in entries.values())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def line_of(entry: KeyEntry) -> str:
    """Return an entry's line in the file."""
    options = [f"{name}={value}" for name in _OPTIONS if (value := getattr(entry, name))]
    head = f"{entry.name}:{entry.sha256}:{entry.requests_per_minute}"
    return " ".join([head, *options])


def _parse(line: str, place: str) -> KeyEntry:
    head, *options = line.split()
    match = _LINE.fullmatch(head)
    if match is None:
        raise SettingsError(
            f"{place}: {head[:20]!r}... is no key; give NAME:SHA256:REQUESTS_PER_MINUTE"
        )
    values = dict(option.partition("=")[::2] for option in options)
    whole = {"name": match["name"], "sha256": match["sha256"], "requests_per_minute": match["rate"]}
    try:
        return msgspec.convert({**values, **whole}, KeyEntry, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{place}: {error}; options are {', '.join(_OPTIONS)}") from error
