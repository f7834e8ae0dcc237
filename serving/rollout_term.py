"""Fencing: of two rollout controllers one acts, because the state's topic has one order.

Kafka has no compare-and-set, but a partition has one order for all. A controller claims a term by
writing the state under the next number and its own name; the first record of a term decides whose
it is, and what anybody writes in a lower or lost term is passed over by every reader for ever
(`serving.rollout_state.newer`). The holder reads the topic to its end before it acts and after it
wrote, so one that was stopped or cut off learns that another holds the term before it does
anything, and what it had begun to write has no effect. This is the fencing token of M. Kleppmann,
"Designing Data-Intensive Applications" (2017, chapter 8), with the readers as the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from msgspec.structs import replace

from contracts.errors import HeadraceError
from contracts.events import Rollout
from serving.rollout_state import newer


class FencedError(HeadraceError):
    """Another controller holds the term; this one must not act."""


class StateTopic(Protocol):
    """The states of one policy on their topic."""

    def states(self) -> Iterator[tuple[Rollout, dict[str, str]]]:
        """Yield the states not yet read, up to the end of the topic, with their trace headers."""
        ...

    def publish(self, state: Rollout, trace: Mapping[str, str]) -> None:
        """Write a state and wait until the broker has it."""
        ...


class Term:
    """What is known of the topic, and whether ``writer`` holds its newest term."""

    def __init__(
        self, topic: StateTopic, writer: str, told: Callable[[Rollout], None] = lambda _: None
    ) -> None:
        """``told`` is given every state that holds, in turn."""
        self._topic = topic
        self._writer = writer
        self._told = told
        self._claimed = -1
        self._hidden = False
        self.newest: Rollout | None = None
        self.trace: dict[str, str] = {}

    def read(self) -> bool:
        """Read the topic to its end; return whether a state was found that holds."""
        found = False
        for state, trace in self._topic.states():
            before = self.newest
            self.newest = newer(before, state)
            if self.newest is not before:
                self.trace = trace
                self._hidden = False
                self._told(state)
                found = True
            else:
                self._hidden = True  # compaction would keep this record and drop the one that holds
        return found

    def claim(self, state: Rollout, trace: Mapping[str, str]) -> Rollout:
        """Write ``state`` as the first of the next term and return it.

        FencedError when another controller was first.
        """
        number = (self.newest.term if self.newest else 0) + 1
        claimed = replace(state, term=number, writer=self._writer)
        self._claimed = number
        self._topic.publish(claimed, trace)
        self.check()
        return claimed

    def check(self) -> None:
        """Read to the end; FencedError unless the term is still held.

        When somebody's void record lies behind our last state, ours is written once more, so that
        compaction leaves it and a reader that begins later finds it.
        """
        self.read()
        self._refuse_lost()
        if self._hidden and self.newest is not None:
            self._topic.publish(self.newest, self.trace)
            self.read()
            self._refuse_lost()

    def write(self, state: Rollout, trace: Mapping[str, str]) -> None:
        """Write a state of the term held, and read it back; FencedError when it is void."""
        self.check()
        self._topic.publish(state, trace)
        self.check()

    def _refuse_lost(self) -> None:
        known = self.newest
        if known is None or (known.term, known.writer) != (self._claimed, self._writer):
            whose = f"term {known.term} is held by {known.writer}" if known else "nobody holds it"
            raise FencedError(f"another rollout controller acts: {whose}; standing by")
