"""How aiokafka joins its group again, corrected, and whether the group still counts us in.

See decision 0109. Methods of one object are replaced; a test on real consumers fails when they are
no longer there.
"""

from __future__ import annotations

from typing import Any

from aiokafka.errors import GroupCoordinatorNotAvailableError, UnknownMemberIdError
from aiokafka.protocol.group import JoinGroupRequest

from contracts.clock import Clock

UNKNOWN_MEMBER = UnknownMemberIdError.errno

CONFIRMED_SECONDS = 5.0
"""So long after a heartbeat that was answered nobody else has our partitions: half a session."""


class Membership:
    """Whether the group still counts this member in. A process that stood still cannot know."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._coordinator: Any = None
        self._confirmed_at = float("-inf")

    def watch(self, coordinator: Any) -> None:
        """Take note of each heartbeat that an aiokafka group coordinator has an answer to."""
        beat = coordinator._do_heartbeat
        self._coordinator, self._confirmed_at = coordinator, float("-inf")

        async def noted() -> bool:
            asked_at = self._clock.monotonic()
            is_member: bool = await beat()
            if is_member:
                self._confirmed_at = asked_at
            return is_member

        coordinator._do_heartbeat = noted

    def is_fresh(self) -> bool:
        """Say whether it was confirmed lately."""
        return self._clock.monotonic() - self._confirmed_at < CONFIRMED_SECONDS

    async def confirm(self) -> bool:
        """Ask the group, in the thread of its coordinator; False when it knows us no more.

        Raises KafkaError when it does not answer.
        """
        coordinator = self._coordinator
        if coordinator.coordinator_id is None:
            raise GroupCoordinatorNotAvailableError
        if await coordinator._do_heartbeat():
            return True
        if coordinator.generation < 0:  # which a refusal resets
            return False
        raise GroupCoordinatorNotAvailableError


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
