"""Faust's own consumer, whose commit the group refuses while it hands the partitions out anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from faust.types import TP, Message

from contracts.settings import Settings
from contracts.topics import DECISIONS
from streams.commits import forget_refused
from streams.worker import make_app

PLACE = TP(DECISIONS.name, 0)


class Group:
    """Stands in for the consumer's thread: the group's answers, and what it holds as committed."""

    def __init__(self, committed: int | None) -> None:
        self.held = committed
        self.refuses = False
        self.consumer: Any = None

    def assignment(self) -> set[TP]:
        return {PLACE}

    async def seek_to_committed(self) -> dict[TP, int | None]:
        return {PLACE: self.held}

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        if not self.refuses:
            self.held = offsets[PLACE]
            return True
        self.refuses = False  # the new generation is there before the answer is
        await self.consumer.on_partitions_revoked({PLACE})
        await self.consumer.perform_seek()
        return False


@pytest.mark.parametrize("committed", [None, 3])
async def test_what_is_read_again_after_a_refused_commit_is_committed(
    tmp_path: Path, committed: int | None
) -> None:
    group = Group(committed)
    consumer = _consumer(tmp_path, group)
    offsets = range(committed or 0, 8)
    await consumer.perform_seek()

    group.refuses = True
    await _acknowledge(consumer, offsets)
    assert group.held == committed

    await _acknowledge(consumer, offsets)
    assert group.held == 8


def _consumer(folder: Path, group: Group) -> Any:
    app = make_app(Settings(state_dir=folder), "test", 1)
    app.topics.acks_enabled_for = lambda _: True
    app.producer.flush = _nothing
    consumer: Any = app.consumer
    consumer._thread, group.consumer = group, consumer
    consumer._on_partitions_revoked = _nothing
    forget_refused(consumer)
    return consumer


async def _acknowledge(consumer: Any, offsets: Sequence[int]) -> None:
    for offset in offsets:
        message = Message(PLACE.topic, 0, offset, 0.0, 0, [], b"", b"", None, tp=PLACE)
        consumer.ack(message)
    await consumer.commit()


async def _nothing(*_: Any, **__: Any) -> None: ...
