"""The loss terms, per response token, as pure functions of log-probabilities.

They know nothing of models, batches or users. Shape suffixes: b sequences, t response tokens
(padded; the caller masks). All arguments are natural-log probabilities of the sampled tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def importance_weights(prox_bt: Tensor, mu_bt: Tensor, cap: float) -> Tensor:
    """Return min(prox/mu, cap) per token, a constant of the loss.

    ``mu`` is the behaviour policy as the engine logged it, ``prox`` the learner's policy at the
    start of the update; their ratio corrects for delay and for engine mismatch at once. Source:
    truncated importance sampling, Ionides 2008; for language models the decoupled loss of
    AReaL (arXiv 2505.24298).
    """
    return torch.clamp(torch.exp(prox_bt - mu_bt), max=cap).detach()


def clipped_surrogate(
    logp_bt: Tensor, prox_bt: Tensor, advantage_b: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Return −min(rho·A, clip(rho, 1 − low, 1 + high)·A) per token, with rho = pi/prox.

    The trust region is around the present policy, not around the one that served, so late rewards
    are not clipped away. Source: PPO (arXiv 1707.06347), decoupled (arXiv 2110.00641), with the
    wider upper bound of DAPO (arXiv 2503.14476).
    """
    rho_bt = torch.exp(logp_bt - prox_bt.detach())
    advantage_b1 = advantage_b[:, None]
    clipped_bt = torch.clamp(rho_bt, 1.0 - clip_low, 1.0 + clip_high)
    return -torch.minimum(rho_bt * advantage_b1, clipped_bt * advantage_b1)


def is_clipped(
    logp_bt: Tensor, prox_bt: Tensor, advantage_b: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Return True where the clip stops the gradient of `clipped_surrogate`."""
    rho_bt = torch.exp(logp_bt - prox_bt)
    up_b1 = advantage_b[:, None] > 0
    return torch.where(up_b1, rho_bt > 1.0 + clip_high, rho_bt < 1.0 - clip_low)


def anchor_penalty(logp_bt: Tensor, anchor_bt: Tensor) -> Tensor:
    """Return exp(a − p) − 1 − (a − p) per token: 0 at the anchor, positive elsewhere.

    This is the k3 form (Schulman, "Approximating KL divergence", 2020). On tokens drawn from an
    older policy it is a penalty, not an unbiased estimate of KL(pi‖anchor).
    """
    difference_bt = anchor_bt.detach() - logp_bt
    return torch.exp(difference_bt) - 1.0 - difference_bt
