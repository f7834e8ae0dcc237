"""The assignment of users to policy versions as an OpenFeature provider, for other programs.

The flag ``headrace.policy_version`` is resolved from the followed rollout state, without a network
call and exactly as the gateway does it: as a string the version, as an object all of the
`Assignment`. The targeting key is the user's id; ``tier``, ``language`` and ``region`` are
attributes. The gateway itself calls `serving.assignment` directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import FlagNotFoundError, TargetingKeyMissingError, TypeMismatchError
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata

from contracts.clock import SystemClock
from contracts.events import Assignment, Rollout
from contracts.settings import Settings, policies_of, settings_for
from serving.api_keys import Traits
from serving.assignment import assign
from serving.rollout_lease import Lease
from serving.rollout_state import RolloutFollower
from serving.segments import policy_for
from serving.turn import FLAG, PROVIDER

Value = TypeVar("Value")


class PolicyFlags(AbstractProvider):
    """Resolves the one flag from the newest states; ``initialize`` follows them, as in the SDK.

    ``client_id`` names the Kafka client; the last states are cached below ``state_dir``, so that
    a program starts with the broker down.
    """

    def __init__(self, settings: Settings, client_id: str = "headrace-flags") -> None:
        super().__init__()
        self._settings = settings
        folder = settings.state_dir / "run"
        self._followers = {
            policy: RolloutFollower(
                settings.kafka,
                policy,
                client_id,
                folder / f"{client_id}-{policy}.json",
                Lease(SystemClock(), settings_for(settings, policy).rollout.lease_seconds),
            )
            for policy in policies_of(settings)
        }
        self._started = False

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Begin to follow the rollouts."""
        for follower in self._followers.values():
            follower.start()
        self._started = True

    def shutdown(self) -> None:
        """Stop following."""
        if self._started:
            for follower in self._followers.values():
                follower.stop()

    def get_metadata(self) -> Metadata:
        """Return the provider's name."""
        return Metadata(name=PROVIDER)

    def resolve_string_details(
        self,
        flag_key: str,
        default_value: str,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[str]:
        """Return the policy version that serves the user."""
        return self._resolve(flag_key, evaluation_context, lambda given: given.policy_version)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        """Return the whole assignment: policy, version, arm, probability, weight, rollout."""
        return self._resolve(flag_key, evaluation_context, msgspec.to_builtins)

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        """Raise TypeMismatchError: the flag is no truth value."""
        raise _mismatch(flag_key)

    def resolve_integer_details(
        self,
        flag_key: str,
        default_value: int,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[int]:
        """Raise TypeMismatchError: the flag is no number."""
        raise _mismatch(flag_key)

    def resolve_float_details(
        self,
        flag_key: str,
        default_value: float,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[float]:
        """Raise TypeMismatchError: the flag is no number."""
        raise _mismatch(flag_key)

    def _resolve(
        self, key: str, context: EvaluationContext | None, value: Callable[[Assignment], Value]
    ) -> FlagResolutionDetails[Value]:
        if key != FLAG:
            raise FlagNotFoundError(f"flag {key!r} is unknown; there is {FLAG!r} alone")
        user_id = context.targeting_key if context else None
        if context is None or not user_id:
            raise TargetingKeyMissingError(f"{FLAG} needs a targeting key: the user's id")
        policy = policy_for(self._settings.segments, self._settings.policy.name, traits_of(context))
        follower = self._followers[policy]
        given = assign(follower.current, policy, user_id)
        return FlagResolutionDetails(
            value=value(given),
            variant=given.arm,
            reason=reason_of(follower.current, fresh=follower.fresh),
            flag_metadata={"policy": policy, "probability": given.probability},
        )


def traits_of(context: EvaluationContext) -> Traits:
    """Return the traits among a context's attributes; what is no text is taken as unknown."""
    found = {name: context.attributes.get(name) for name in Traits.__struct_fields__}
    return Traits(**{name: text for name, text in found.items() if isinstance(text, str)})


def reason_of(state: Rollout | None, *, fresh: bool) -> Reason:
    """Return why a version was given: by default, from an old state, by share, or as to all."""
    if state is None:
        return Reason.DEFAULT
    if not fresh:
        return Reason.STALE
    return Reason.SPLIT if state.phase == "canary" else Reason.STATIC


def _mismatch(key: str) -> TypeMismatchError:
    return TypeMismatchError(f"{key} is a string or an object; ask for one of these")
