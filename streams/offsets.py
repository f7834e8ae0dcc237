"""Which offsets of one partition may be committed: those before the oldest one still in work.

Faust's own bookkeeping commits past a gap (an offset acknowledged out of order hides the one
before it), so offsets are handed to it strictly in order, from here.
"""

from __future__ import annotations


class Offsets:
    """Offsets read from one partition of one topic, in order, and which of them are done."""

    def __init__(self) -> None:
        self._done: dict[int, bool] = {}
        self._next: int | None = None

    @property
    def next(self) -> int | None:
        """Return the offset after the newest one read, None when none was."""
        return self._next

    @property
    def committable(self) -> int | None:
        """Return the offset before which all is done, None when none was read."""
        return next(iter(self._done), self._next)

    def read(self, offset: int) -> bool:
        """Note an offset as being worked on; False when it was read before."""
        if self._next is not None and offset < self._next:
            return False
        self._done[offset] = False
        self._next = offset + 1
        return True

    def done(self, offset: int) -> None:
        """Note an offset as done, for good."""
        if offset in self._done:
            self._done[offset] = True
        while self._done:
            oldest = next(iter(self._done))
            if not self._done[oldest]:
                return
            del self._done[oldest]
