"""The anchor: the policy that the present one is tied to, the frozen base or a version that serves.

An anchor that never moves holds the policy back the longer it learns; one that is the policy itself
holds nothing. So the anchor becomes a version of its own that nearly all users already have: what
a rollout has taken that far has been through gate and canary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct, field
from safetensors.torch import load_file
from torch import Tensor

from contracts.errors import ManifestError
from contracts.events import BASE_VERSION
from contracts.manifest import verify
from learner.adapters import ADAPTER_WEIGHTS, restore_adapters
from learner.buckets import TokenSequence
from learner.policy import Policy

_log = logging.getLogger("learner")


class Anchor(Struct, frozen=True):
    """A version and its adapters as `Policy.adapters` names them; the base has none."""

    version: str = BASE_VERSION
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_base(self) -> bool:
        """Return whether it is the frozen base."""
        return not self.weights

    def logprobs(
        self, policy: Policy, sequences: Sequence[TokenSequence], tokens: int
    ) -> list[list[float]]:
        """Return the log-probability of every response token under the anchor."""
        if self.is_base:
            return policy.logprobs(sequences, tokens, adapted=False)
        with other_adapters(policy, self.weights):
            return policy.logprobs(sequences, tokens)


def refreshed(
    anchor: Anchor,
    versions: Mapping[str, int],
    served: int,
    directory: Path,
    after: int,
) -> Anchor:
    """Return the anchor beside release ``served`` in service: that one if it is so much newer.

    ``versions`` maps released ids to their numbers, ``directory`` is where they lie, ``after`` how
    many releases newer it must be; 0: the anchor stays. It stays, too, when the version is gone,
    has changed, or in a replay is not made yet.
    """
    if not after or served - versions.get(anchor.version, 0) < after:
        return anchor
    version = {number: name for name, number in versions.items()}.get(served)
    if version is None:
        return anchor
    try:
        verify(directory / version, version)
        weights = load_file(directory / version / ADAPTER_WEIGHTS)
    except (ManifestError, OSError) as error:
        _log.warning("the anchor stays %s: %s", anchor.version[:12], error)
        return anchor
    _log.info("the anchor is now release %d, version %s", served, version[:12])
    return Anchor(version, weights)


def in_service(served: Sequence[int]) -> int:
    """Return the release that three quarters of the answers were served by, or by a newer one.

    ``served`` are the numbers of the releases that gave them; of none it is the base.
    """
    return sorted(served)[len(served) // 4] if served else 0


@contextmanager
def other_adapters(policy: Policy, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the policy other weights for the length of a block; its own come back bit for bit."""
    own = {name: tensor.detach().clone() for name, tensor in policy.adapters().items()}
    restore_adapters(policy, dict(weights))
    try:
        yield
    finally:
        restore_adapters(policy, own)
