"""How long a canary may go on without a word of the controller that judges it."""

from __future__ import annotations

from msgspec.structs import replace

from contracts.clock import Clock
from contracts.events import Rollout


class Lease:
    """Runs out ``seconds`` after the controller was last `heard`, counted from the start.

    A live controller writes its state at least three times within ``rollout.takeover_seconds``.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self.seconds = seconds
        self._heard_at = clock.monotonic()

    def heard(self) -> None:
        """Begin anew: the controller wrote its state."""
        self._heard_at = self._clock.monotonic()

    def over(self, state: Rollout | None) -> bool:
        """Tell whether a candidate is out that nobody judges any more."""
        out = state is not None and state.candidate is not None
        return out and self._clock.monotonic() - self._heard_at > self.seconds


def withdrawn(state: Rollout) -> Rollout:
    """Return the state as if no rollout were under way: the stable version serves everybody.

    What is assigned under it belongs to no rollout and counts for none.
    """
    return replace(
        state, phase="idle", candidate=None, rollout_id=None, weight=0.0, shadow_share=0.0
    )
