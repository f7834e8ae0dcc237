"""The door: which caller a request's key names, and whether that caller may ask once more.

Without a keys file everyone is let in, which a gateway does on loopback alone.
"""

from __future__ import annotations

import ipaddress
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from contracts.clock import Clock
from contracts.errors import SettingsError
from contracts.settings import Gateway
from serving.api_keys import KeyEntry, entry_of, read_keys
from serving.wire_errors import Refusal

BURST_SECONDS = 10.0
"""A caller who was silent may ask this many seconds' worth of requests at once."""

_log = logging.getLogger("headrace.gateway")


class _Use(Struct):
    """A token bucket, and the requests under way."""

    tokens: float
    at: float
    under_way: int = 0


class KeyDoor:
    """Knows the keys of the settings' file and what each is used for; for one event loop."""

    def __init__(self, settings: Gateway, clock: Clock) -> None:
        self.note = ""
        self._path = Path(settings.api_keys_file) if settings.api_keys_file else None
        self._clock = clock
        self._keys: dict[str, KeyEntry] = {}
        self._uses: dict[tuple[str, str], _Use] = {}
        self._read_at: tuple[int, int] | None = None
        check_openness(settings)
        if self._path is not None:
            self._keys = read_keys(self._path)
            self._read_at = self._version()

    def identify(self, authorization: str | None) -> KeyEntry | None:
        """Return whose key an ``Authorization`` header holds; None where all are let in.

        Raises Refusal 401 when the door has keys and this is none of them.
        """
        if self._path is None:
            return None
        scheme, _, given = (authorization or "").partition(" ")
        entry = entry_of(self._keys, given.strip()) if scheme.lower() == "bearer" else None
        if entry is None:
            raise Refusal(
                401,
                "the request has no valid API key; send 'Authorization: Bearer KEY' with a key "
                "from 'headrace keys add'",
                code="invalid_api_key",
            )
        return entry

    @contextmanager
    def admitted(self, caller: KeyEntry | None, route: str) -> Iterator[None]:
        """Hold one of the caller's places on a route; Refusal 429 when it asks too much."""
        if caller is None:
            yield
            return
        use = self._refill(caller, route)
        if caller.concurrent and use.under_way >= caller.concurrent:
            raise _too_many(f"{use.under_way} requests of key {caller.name!r} are under way", 1.0)
        if use.tokens < 1.0:
            rate = caller.requests_per_minute
            wait = (1.0 - use.tokens) * 60.0 / rate
            raise _too_many(f"key {caller.name!r} may ask {rate} times a minute", wait)
        use.tokens -= 1.0
        use.under_way += 1
        try:
            yield
        finally:
            use.under_way -= 1

    def refresh(self) -> None:
        """Take in a changed keys file; a broken one leaves the known keys as they are."""
        if self._path is None or (version := self._version()) == self._read_at:
            return
        try:
            self._keys = read_keys(self._path)
        except SettingsError as error:
            if self.note != str(error):
                _log.warning("%s; going on with the keys known", error)
            self.note = str(error)
            return
        self.note, self._read_at = "", version
        self._uses = {place: use for place, use in self._uses.items() if place[0] in self._keys}
        _log.info("%d API keys", len(self._keys))

    def _refill(self, caller: KeyEntry, route: str) -> _Use:
        now, rate = self._clock.monotonic(), caller.requests_per_minute / 60.0
        full = max(rate * BURST_SECONDS, 1.0)
        use = self._uses.setdefault((caller.name, route), _Use(full, now))
        use.tokens = min(use.tokens + (now - use.at) * rate, full)
        use.at = now
        return use

    def _version(self) -> tuple[int, int] | None:
        assert self._path is not None, "only a door with keys has a file"
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


def check_openness(settings: Gateway) -> None:
    """Raise SettingsError for a gateway that others could reach and that asks for no key."""
    if settings.api_keys_file or settings.open or _is_loopback(settings.host):
        return
    raise SettingsError(
        f"gateway.host {settings.host!r} can be reached from other machines, and there are no API "
        "keys; set gateway.api_keys_file (see 'headrace keys add'), or gateway.open where "
        "something else keeps the door"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _too_many(what: str, seconds: float) -> Refusal:
    return Refusal(
        429,
        f"{what}; try again later",
        code="rate_limit_exceeded",
        retry_after=max(math.ceil(seconds), 1),
    )
