"""One correction to how aiokafka joins its group again; see decision 0109.

It replaces two methods of one object; a test on real consumers fails when they are no longer there.
"""

from __future__ import annotations

from typing import Any

from aiokafka.errors import UnknownMemberIdError
from aiokafka.protocol.group import JoinGroupRequest

UNKNOWN_MEMBER = UnknownMemberIdError.errno


def keep_member_id(coordinator: Any) -> None:
    """Make an aiokafka group coordinator join again under the id it has, if the broker knows it.

    aiokafka drops its id when only the generation was refused, and joins as one member more; the
    group then waits for the member it was before, until its session ends, or for ever.
    """
    send, reset = coordinator._send_req, coordinator.reset_generation
    is_unknown = False

    async def send_req(request: Any) -> Any:
        nonlocal is_unknown
        response = await send(request)
        if isinstance(request, JoinGroupRequest):
            is_unknown = response.error_code == UNKNOWN_MEMBER
        return response

    def reset_generation() -> None:
        nonlocal is_unknown
        member_id = coordinator.member_id
        reset()
        if not is_unknown:
            coordinator.member_id = member_id
        is_unknown = False

    coordinator._send_req = send_req
    coordinator.reset_generation = reset_generation
