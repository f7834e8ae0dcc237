"""The rollout's record: its state on the topic, written in the term held, each step audited first.

What cannot be audited does not happen, and what was decided without the term is void.
"""

from __future__ import annotations

import logging
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from contracts.clock import Clock
from contracts.events import BASE_VERSION, Candidate, Rollout
from contracts.ids import NewId
from contracts.tracing import current_trace_headers
from serving.rollout_log import RolloutLog
from serving.rollout_term import Term

_log = logging.getLogger("headrace.rollout")


class Act(Struct, frozen=True):
    """A step to be audited: the audit's word for it, the version it is about, why, and figures."""

    action: str
    about: Candidate
    reason: str
    detail: dict[str, Any] = {}


class RolloutRecord:
    """The state last published for one policy, and the trace of the step that led to it."""

    def __init__(
        self, policy: str, log: RolloutLog, term: Term, clock: Clock, new_id: NewId
    ) -> None:
        self._policy = policy
        self._log = log
        self._term = term
        self._clock = clock
        self._new_id = new_id
        self._state: Rollout | None = None
        self._written_at = 0.0
        self.trace: dict[str, str] = {}

    @property
    def state(self) -> Rollout:
        """The state last published; only after `claim`."""
        assert self._state is not None, "no term was claimed yet"
        return self._state

    @property
    def claimed(self) -> bool:
        """Whether there is a state to go on from."""
        return self._state is not None

    @property
    def quiet_seconds(self) -> float:
        """How long ago a state was written."""
        return self._clock.monotonic() - self._written_at

    def claim(self) -> Rollout:
        """Claim the next term of the newest state on the topic, or of the first one.

        FencedError when another controller was first.
        """
        self._term.read()
        state = self._term.newest or Rollout(
            id=self._new_id(),
            time=self._clock.now(),
            policy=self._policy,
            epoch=0,
            phase="idle",
            stable=Candidate(version=BASE_VERSION),
        )
        self.trace = self._term.trace
        return self._keep(self._term.claim(self._stamped(state), self.trace))

    def drop(self) -> None:
        """Forget the state: another controller may write the next one."""
        self._state = None

    def check_term(self) -> None:
        """Raise FencedError unless the term is still held."""
        self._term.check()

    def act(self, act: Act, after: Rollout) -> None:
        """Audit a step and publish the state after it as the next epoch."""
        after = replace(after, epoch=self.state.epoch + 1)
        self._term.check()
        detail = _context(after) | act.detail
        self._log.audit(f"rollout.{act.action}", act.about.version, act.reason, detail)
        self.trace = current_trace_headers()
        self.write(after)
        _log.info("epoch %s: %s %s", after.epoch, act.action, act.reason)

    def note(self, action: str, about: Candidate, reason: str, detail: dict[str, Any]) -> None:
        """Audit what changes no state."""
        self._term.check()
        self._log.audit(action, about.version, reason, {"policy": self._policy} | detail)

    def write(self, state: Rollout) -> None:
        """Publish a state of the present epoch; ours changes only once the broker has it."""
        state = self._stamped(state)
        self._term.write(state, self.trace)
        self._keep(state)

    def _keep(self, state: Rollout) -> Rollout:
        self._state, self._written_at = state, self._clock.monotonic()
        return state

    def _stamped(self, state: Rollout) -> Rollout:
        return replace(state, id=self._new_id(), time=self._clock.now())


def _context(after: Rollout) -> dict[str, Any]:
    """Return what every audit record of a step says: which rollout, and where it stands after."""
    return {
        "policy": after.policy,
        "rollout_id": after.rollout_id,
        "plan": after.plan,
        "serves": after.stable.version,
        "phase": after.phase,
        "step": after.step,
        "weight": after.weight,
        "positions": after.positions,
        "first_positions": after.first_positions,
        "term": after.term,
    }
