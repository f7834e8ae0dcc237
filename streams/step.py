"""What one batch leads to: records to deliver, facts to count, offsets that are then done."""

from __future__ import annotations

import logging

from msgspec import Struct

from contracts.codec import Record, encode
from contracts.errors import CodecError
from contracts.events import Event
from contracts.topics import Topic
from contracts.tracing import current_trace_headers
from streams.attribution import Attribution
from streams.offsets import Offsets
from streams.session import RewardFigures, Turn
from streams.tally import Fact

_log = logging.getLogger(__name__)


class Revision(Struct, frozen=True):
    """A reward sent anew, or feedback that may lead to that later: what is counted then and now."""

    turn: Turn
    before: RewardFigures
    after: RewardFigures


class Step(Struct):
    """Filled by the `flow`, delivered by the worker; ``source`` names the worker in records."""

    source: str
    records: list[Record] = []
    facts: list[Fact] = []
    done: list[tuple[Offsets, int]] = []
    closed: list[tuple[Attribution, Turn]] = []
    revised: list[tuple[int, Revision]] = []
    sessions: dict[str, Attribution] = {}

    def __bool__(self) -> bool:
        return bool(self.records or self.facts or self.done or self.closed)

    def send(self, topic: Topic, event: Event, value: bytes | None = None) -> bool:
        """Add an event, in the trace of the current span; False when it is too large.

        ``value`` is its JSON where it was made before.
        """
        trace = current_trace_headers()
        try:
            record = encode(topic, event, source=self.source, trace=trace, value=value)
        except CodecError as error:
            _log.error("%s %s not sent: %s", topic.name, event.id, error)
            return False
        self.records.append(record)
        return True
