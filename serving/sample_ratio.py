"""The sample-ratio test: an anytime-valid test that users reach the canary with the promised share.

Where assignment works, each user is the canary's with probability ``w``; another share, on either
side, means that assignment or counting is broken and nothing measured on these arms can be
believed. The same e-process as for violations (`serving.eprocess`), but its unit is a user and its
mixture has odds ratios on both sides of one.

Source: M. Lindon and A. Malek, "Anytime-valid inference for multinomial count data" (NeurIPS 2022,
arXiv 2011.03567), with simple alternatives in place of the Dirichlet mixture, so that the weight
may change between users.
"""

from __future__ import annotations

from serving.eprocess import add_events, e_value

_ONE_SIDE: tuple[float, ...] = tuple(1.1 * (8 / 1.1) ** (j / 7) for j in range(8))

ODDS_RATIOS: tuple[float, ...] = (*(1.0 / ratio for ratio in reversed(_ONE_SIDE)), *_ONE_SIDE)
"""How far the canary's odds may be off: eight values from 1.1 to 8 and their reciprocals."""

NO_USERS: tuple[float, ...] = (0.0,) * len(ODDS_RATIOS)
"""The running logs before the first user; E is 1."""

__all__ = ["NO_USERS", "ODDS_RATIOS", "add_users", "e_value"]


def add_users(
    log_wealth: tuple[float, ...], *, canary: int, stable: int, weight: float
) -> tuple[float, ...]:
    """Return the running logs after some more users, each counted once in the rollout.

    ``weight`` is the canary's share in force when these users were assigned. E of the logs reaches
    ``1/alpha`` with probability at most ``alpha`` over all looks. In any order and any batches the
    same users give the same bytes, up to a million users. Raises ValueError for a weight outside
    [0, 1] and for negative counts.
    """
    return add_events(
        log_wealth or NO_USERS, ODDS_RATIOS, canary=canary, stable=stable, weight=weight
    )
