"""What Faust remembers of a commit that the group refused, corrected; see decision 0112.

Methods of one object are replaced; a test on a real consumer fails when they are no longer there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def forget_refused(consumer: Any) -> None:
    """Make a Faust consumer forget the offsets of a commit that was refused.

    It notes them as committed whatever the answer was. Where the new generation has already sought
    its partitions, what is read again below them is then not acknowledged, hence not committed,
    until newer records come.
    """
    ask, commit = consumer._commit, consumer._commit_offsets
    before: dict[Any, int | None] = {}

    async def asked(offsets: Mapping[Any, int]) -> bool:
        is_done: bool = await ask(offsets)
        if not is_done:  # no await between this and the end of `commit`
            before.update({place: consumer._committed_offset[place] for place in offsets})
        return is_done

    async def committed(offsets: Mapping[Any, int], start_new_transaction: bool = True) -> bool:
        is_done: bool = await commit(offsets, start_new_transaction)
        consumer._committed_offset.update(before)
        before.clear()
        return is_done

    consumer._commit, consumer._commit_offsets = asked, committed
