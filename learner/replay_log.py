"""Reads the part of `samples` that a replay needs, and says when the broker no longer has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from kafka.errors import KafkaError, OffsetOutOfRangeError

from contracts.broker import Reader, Received
from contracts.errors import DeadlineError, UnavailableError
from contracts.settings import Kafka
from contracts.topics import SAMPLES
from learner.intake import sample_id_of
from learner.version_line import Link

CLIENT_ID = "headrace-replay"
SILENCE_SECONDS = 60.0
PLACE = f"{SAMPLES.name}/0"

Waiting = Callable[[], AbstractContextManager[None]]
"""What is entered for as long as the broker is waited for."""


class LogPart:
    """Records ``first`` to ``next - 1`` of `samples`; ``begins`` is the first the broker has.

    DeadlineError when the broker is away or refuses.
    """

    def __init__(
        self, kafka: Kafka, first: int, next_: int, waiting: Waiting = nullcontext
    ) -> None:
        self.kafka = kafka
        self.next = next_
        self._waiting = waiting
        with _clear_faults(kafka), waiting():
            reader = Reader(kafka, (SAMPLES,), CLIENT_ID, {PLACE: 0})
            try:
                self.begins = reader.positions()[PLACE]
            finally:
                reader.close()
        self.first = max(first, self.begins)

    def records(self) -> Iterator[Received]:
        """Yield the records; DeadlineError when nothing comes for 60 s.

        UnavailableError when the log ends before ``next``, or is cut while it is read.
        """
        with _clear_faults(self.kafka):
            positions = {PLACE: self.first}
            with self._waiting():
                reader = Reader(self.kafka, (SAMPLES,), CLIENT_ID, positions, begin_again=False)
            try:
                yield from self._read(reader)
            finally:
                reader.close()

    def _read(self, reader: Reader) -> Iterator[Received]:
        with self._waiting():
            end = reader.ends()[PLACE]
        if end < self.next:
            raise UnavailableError(
                f"{SAMPLES.name} at {self.kafka.bootstrap} ends at offset {end}, but those "
                f"before {self.next} were learned from; name the broker that has the log in "
                "kafka.bootstrap"
            )
        deadline = time.monotonic() + SILENCE_SECONDS
        while True:
            with self._waiting():
                if reader.positions()[PLACE] >= self.next:
                    return
                found = reader.poll(0.2)
            if not found and time.monotonic() > deadline:
                raise DeadlineError(
                    f"{SAMPLES.name}: no record up to offset {self.next} came from "
                    f"{self.kafka.bootstrap} for {SILENCE_SECONDS} s; see 'headrace doctor'"
                )
            if found:
                yield from (record for record in found if record.offset < self.next)
                deadline = time.monotonic() + SILENCE_SECONDS  # learning them takes its time


@contextmanager
def _clear_faults(kafka: Kafka) -> Iterator[None]:
    """Say what faults of the Kafka client mean for who reads the log again, and their cure."""
    where = f"{SAMPLES.name} at {kafka.bootstrap}"
    try:
        yield
    except OffsetOutOfRangeError as error:
        raise UnavailableError(
            f"{where} no longer has what was to be read next ({error}): retention removed it "
            "meanwhile, or the topic was made anew; set a longer retention.ms for "
            f"{SAMPLES.name}, and try again"
        ) from error
    except KafkaError as error:
        raise DeadlineError(
            f"{where} could not be read: the broker refused or is away ({error}); look at it with "
            "'headrace doctor', and try again"
        ) from error


class Proof:
    """Checks that what is read is the log that the versions were learned from."""

    def __init__(self, part: Sequence[Link]) -> None:
        self._wanted = {line.offset: line.sample_id for link in part for line in link.ledger()}
        self._left = dict(self._wanted)
        self._begins = part[0].begins

    def check_beginning(self, log: LogPart) -> None:
        """Raise UnavailableError when the broker removed what is needed."""
        if log.begins > self._begins:
            raise UnavailableError(
                f"{SAMPLES.name} begins at offset {log.begins} on {log.kafka.bootstrap}, and the "
                f"versions to replay were learned from offset {self._begins} on: retention has "
                "removed what is needed; give --from a later version ('headrace replay --help'), "
                f"and set a longer retention.ms for {SAMPLES.name}"
            )

    def take(self, record: Received) -> None:
        """Note a record; UnavailableError when the ledger has another sample at its offset."""
        wanted = self._left.pop(record.offset, None)
        if wanted is not None and wanted != sample_id_of(record):
            raise self._another(record.offset, wanted)

    def check_end(self) -> None:
        """Raise UnavailableError when a sample of the ledgers did not come."""
        if self._left:
            offset = min(self._left)
            raise self._another(offset, self._left[offset])

    def _another(self, offset: int, wanted: str) -> UnavailableError:
        return UnavailableError(
            f"{SAMPLES.name} does not hold sample {wanted} at offset {offset}, where the ledger "
            "has it: this is another log, or retention removed it meanwhile; name the broker "
            "that has the log in kafka.bootstrap and kafka.prefix"
        )
