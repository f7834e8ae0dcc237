"""Reads and writes rows of Feast's Redis online store in Feast's layout, and no more.

An entity is one hash: a field per feature (a hash of its name), a field per view with the time of
its newest event. A write compares that time and sets all fields in one step on the server, so that
of several writers none overwrites what is newer. Keys expire when they are not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from math import ceil
from typing import Any

from feature_store.encoding import (
    decode,
    encoder,
    entity_key,
    key_prefix,
    microseconds,
    moment_of,
    timestamp,
)
from feature_store.rows import Latest, Stored
from feature_store.views import FeatureRow, Value, View

BATCH = 250
"""Rows per round trip: the client waits no longer for an answer than its limit, 0.05 s."""

WRITE = """
local function microseconds(text)
  local fields, place = {0, 0}, 1
  while place <= #text do
    local field, value, scale, byte = math.floor(text:byte(place) / 8), 0, 1
    repeat
      place = place + 1
      byte = text:byte(place)
      value, scale = value + byte % 128 * scale, scale * 128
    until byte < 128
    if value >= 2 ^ 63 then value = value - 2 ^ 64 end
    fields[field], place = value, place + 1
  end
  return fields[1] * 1000000 + math.floor(fields[2] / 1000)
end
local stored = redis.call('HGET', KEYS[1], ARGV[3])
if stored and tonumber(ARGV[1]) < microseconds(stored) then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
"""Arguments: the event's microseconds, milliseconds to live, then fields and values, time first."""


class RedisRows:
    """Rows of ``views`` in the server of a Redis client, made by Feast from the settings.

    ``layout`` maps each view's name to the name Feast stores it under. Raises redis.RedisError.
    """

    def __init__(
        self,
        client: Any,
        project: str,
        layout: Mapping[str, str],
        views: Iterable[View],
        keep_seconds: float,
    ) -> None:
        from feast.protos.feast.types.Value_pb2 import Value as ValueProto
        from google.protobuf.timestamp_pb2 import Timestamp

        self._parse: Any = ValueProto.FromString
        self._parse_time: Any = Timestamp.FromString
        self._pool, self._project = client.connection_pool, project.encode()
        self._views = {view.name: _Layout(view, layout[view.name]) for view in views}
        self._keep = str(ceil(keep_seconds * 1000)).encode()
        self._script = b""

    def read(self, keys: Mapping[str, str]) -> dict[str, Stored]:
        """Return view name to (values, event time in epoch seconds) of the rows that are there."""
        views = self._views.values()
        replies = self._exchange(
            [
                ("HMGET", self._key(of, keys[of.view.join_key]), *of.served_fields, of.time)
                for of in views
            ]
        )
        found: dict[str, Stored] = {}
        for of, (*data, time) in zip(views, replies, strict=True):
            if time is not None:
                found[of.view.name] = self._values(of.served, data), self._parse_time(time).seconds
        return found

    def latest(self, view: View, keys: Sequence[str]) -> dict[str, Latest]:
        """Return the row of each key that is there."""
        of, found = self._views[view.name], dict[str, Latest]()
        for start in range(0, len(keys), BATCH):
            part = keys[start : start + BATCH]
            replies = self._exchange(
                [("HMGET", self._key(of, key), *of.fields, of.time) for key in part]
            )
            for key, (*data, time) in zip(part, replies, strict=True):
                if time is not None:
                    parsed = self._parse_time(time)
                    moment = moment_of(parsed.seconds * 1_000_000 + parsed.nanos // 1000)
                    found[key] = self._values(of.columns, data), moment
        return found

    def write(self, view: View, rows: Sequence[FeatureRow]) -> int:
        """Write rows of a view in the order of their events; return how many were late."""
        of, late = self._views[view.name], 0
        ordered = sorted(rows, key=lambda row: row.event_time)
        for start in range(0, len(ordered), BATCH):
            part = ordered[start : start + BATCH]
            late += self._written(of, part).count(0)
        return late

    def prune(self, before: datetime, limit: int) -> int:
        """Return 0: keys expire by themselves."""
        return 0

    def _written(self, of: _Layout, rows: Sequence[FeatureRow]) -> list[Any]:
        from redis.exceptions import NoScriptError

        if not self._script:
            self._load_script()
        try:
            return self._exchange([self._write_command(of, row) for row in rows])
        except NoScriptError:  # the server began anew; rows written before the error stay the same
            self._load_script()
            return self._exchange([self._write_command(of, row) for row in rows])

    def _write_command(self, of: _Layout, row: FeatureRow) -> tuple[Any, ...]:
        micros = microseconds(row.event_time)
        command: list[Any] = ["EVALSHA", self._script, 1, self._key(of, row.key)]
        command += (micros, self._keep, of.time, timestamp(micros))
        for name, value in row.values.items():
            field, encode = of.write[name]
            command += (field, encode(value))
        return tuple(command)

    def _load_script(self) -> None:
        (self._script,) = self._exchange([("SCRIPT", "LOAD", WRITE)])

    def _key(self, of: _Layout, key: str) -> bytes:
        return entity_key(of.prefix, key) + self._project

    def _values(self, names: Sequence[str], data: Sequence[bytes | None]) -> dict[str, Value]:
        return {name: decode(each, self._parse) for name, each in zip(names, data, strict=True)}

    def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands in one write and return their replies; the client's pipeline does more."""
        connection = self._pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            return [connection.read_response() for _ in commands]
        except BaseException:
            connection.disconnect()  # replies to come would be taken for those of the next call
            raise
        finally:
            self._pool.release(connection)


class _Layout:
    """Where a view's columns are: made once, used by every command."""

    def __init__(self, view: View, stored_as: str) -> None:
        from feast.infra.online_stores.helpers import _mmh3

        self.view, self.prefix = view, key_prefix(view.join_key)
        self.time = f"_ts:{stored_as}".encode()
        self.columns, self.served = list(view.columns), list(view.features)
        field = {name: _mmh3(f"{stored_as}:{name}") for name in self.columns}
        self.fields = [field[name] for name in self.columns]
        self.served_fields = [field[name] for name in self.served]
        self.write = {name: (field[name], encoder(kind)) for name, kind in view.columns.items()}
