"""The losses as pure functions of log-probabilities, all of one signature: (terms, bounds) → value.

They know nothing of models, batches or users. Each returns the loss of every sequence, summed over
its response tokens and not divided by their number; the caller weighs sequences. Where a loss has a
natural scale of its own it is given the one of the policy gradient, so that a batch may mix them.
Shape suffixes: b sequences, t response tokens (padded; the mask tells). Logarithms are natural.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor
from torch.nn.functional import logsigmoid

LARGEST_AWR_WEIGHT = 20.0
FAR = 3.0
"""Nats below the anchor, from which on `anchor_penalty` pulls no harder."""

SUREST = 0.999
"""Of an answer likelier than this, `likelihood` takes the probability for this."""


class Terms(Struct, frozen=True, kw_only=True):
    """What a loss is a function of: log-probabilities of the response tokens, and their worth.

    ``logp`` is of the policy being changed and alone carries a gradient; ``prox`` is that policy
    at the start of the update, ``mu`` whoever drew the answer, as the engine logged it, ``anchor``
    the reference that the policy is tied to. ``advantage`` is above 0 for what is encouraged.
    ``drift`` is how far the policy has moved from its anchor, per sequence and never below 0.
    """

    logp_bt: Tensor
    prox_bt: Tensor
    mu_bt: Tensor
    anchor_bt: Tensor
    advantage_b: Tensor
    mask_bt: Tensor
    drift: float = 0.0

    def rows(self, places: Sequence[int]) -> Terms:
        """Return the terms of some of the sequences."""
        at = list(places)
        return replace(
            self,
            logp_bt=self.logp_bt[at],
            prox_bt=self.prox_bt[at],
            mu_bt=self.mu_bt[at],
            anchor_bt=self.anchor_bt[at],
            advantage_b=self.advantage_b[at],
            mask_bt=self.mask_bt[at],
        )


class Bounds(Struct, frozen=True, kw_only=True):
    """What keeps a step small; see the settings of the same names."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    importance_cap: float = 2.0
    awr_temperature: float = 1.0
    beta: float = 0.1


class LossValue(Struct, frozen=True):
    """A loss per sequence, and how its tokens fared.

    ``weight`` is what the policy gradient of each token is multiplied by besides the advantage,
    ``stopped`` is True where a bound leaves a token without gradient; neither carries one itself.
    """

    loss_b: Tensor
    weight_bt: Tensor
    stopped_bt: Tensor


Loss = Callable[[Terms, Bounds], LossValue]


def ppo(terms: Terms, bounds: Bounds) -> LossValue:
    """Return −Σ_t w·min(rho·A, clip(rho, 1 − low, 1 + high)·A): decoupled clipped PPO.

    w = min(prox/mu, cap) is a constant and rho = pi/prox. The trust region is around the present
    policy, not around the one that served, so late rewards are not clipped away, and w corrects
    for delay and for engine mismatch at once. On the policy's own answers it is REINFORCE with a
    baseline. Sources: PPO (arXiv 1707.06347), decoupled (arXiv 2110.00641; for language models
    AReaL, arXiv 2505.24298), truncated importance sampling (Ionides 2008), the wider upper bound of
    DAPO (arXiv 2503.14476).
    """
    weight_bt = importance_weights(terms.prox_bt, terms.mu_bt, bounds.importance_cap)
    surrogate_bt, stopped_bt = _clipped(
        terms.logp_bt - terms.prox_bt.detach(), terms.advantage_b, bounds
    )
    return LossValue(
        (terms.mask_bt * weight_bt * surrogate_bt).sum(1), weight_bt, stopped_bt & terms.mask_bt
    )


def topr(terms: Terms, bounds: Bounds) -> LossValue:
    """Return −c·A·Σ_t log pi, c = 1 where A ≥ 0, else the sequence's min(pi/mu, 1), a constant.

    What is encouraged is imitated at full weight however unlikely it has become; what is
    discouraged counts as long as the policy would still say it. Source: tapered off-policy
    REINFORCE (arXiv 2503.14286).
    """
    ratio_b = torch.exp(_summed(terms.logp_bt - terms.mu_bt, terms.mask_bt)).clamp(max=1.0)
    weight_b = torch.where(terms.advantage_b >= 0, torch.ones_like(ratio_b), ratio_b).detach()
    loss_b = -weight_b * terms.advantage_b * _summed(terms.logp_bt, terms.mask_bt)
    return LossValue(loss_b, _per_token(weight_b, terms), _nowhere(terms))


def cispo(terms: Terms, bounds: Bounds) -> LossValue:
    """Return −Σ_t w·A·log pi with w = min(pi/mu, cap), a constant: no token is without gradient.

    Source: CISPO of MiniMax-M1 (arXiv 2506.13585), without its lower bound, as there.
    """
    weight_bt = importance_weights(terms.logp_bt, terms.mu_bt, bounds.importance_cap)
    advantage_b1 = terms.advantage_b[:, None]
    loss_b = -_summed(weight_bt * advantage_b1 * terms.logp_bt, terms.mask_bt)
    return LossValue(loss_b, weight_bt, _nowhere(terms))


def awr(terms: Terms, bounds: Bounds) -> LossValue:
    """Return −min(exp(A/temperature), 20)·Σ_t log pi: imitation, the better the answer the more.

    It needs no probabilities of whoever drew the answer, and never pushes one away: what is
    discouraged is imitated little. Source: advantage-weighted regression (arXiv 1910.00177) with
    the bound on its weights used there.
    """
    weight_b = torch.exp(terms.advantage_b / bounds.awr_temperature).clamp(max=LARGEST_AWR_WEIGHT)
    loss_b = -weight_b.detach() * _summed(terms.logp_bt, terms.mask_bt)
    return LossValue(loss_b, _per_token(weight_b.detach(), terms), _nowhere(terms))


def kto(terms: Terms, bounds: Bounds) -> LossValue:
    """Return 4/beta·|A|·(1 − sigmoid(±beta·(v − drift))), v = Σ_t log(pi/anchor), the sign A's.

    It needs no probabilities of whoever drew the answer and is bounded on both sides: the further
    the answer has moved from the anchor in the wanted direction, the less it is pushed. At
    v = drift each token's gradient is the policy gradient's, which the factor 4/beta is for.
    Source: KTO (arXiv 2402.01306), label and weight from the advantage, the reference point from
    the batch's own answers instead of mismatched pairs.
    """
    moved_b = _summed(terms.logp_bt - terms.anchor_bt, terms.mask_bt) - terms.drift
    gain_b = torch.sigmoid(torch.sign(terms.advantage_b) * bounds.beta * moved_b)
    loss_b = 4.0 / bounds.beta * terms.advantage_b.abs() * (1.0 - gain_b)
    weight_b = (4.0 * gain_b * (1.0 - gain_b)).detach()
    return LossValue(loss_b, _per_token(weight_b, terms), _nowhere(terms))


def likelihood(terms: Terms, bounds: Bounds) -> LossValue:
    """Return −w·A·log pi, w = 1 where A ≥ 0, else min(pi/(1 − pi), 999), a constant.

    pi is the whole answer's probability, read as that of the answer being right: the derivative is
    that of −A·log pi where A ≥ 0 and of A·log(1 − pi) elsewhere, a logistic regression of what was
    said about answers whose model is the policy. It needs no probabilities of whoever drew the
    answer. Where the policy is sure of a wrong answer a policy gradient vanishes with 1 − pi, and
    this one does not; what the policy would hardly say is not pushed further away. The probability
    of a long answer is next to 0, so of those only what is encouraged teaches. Sources:
    unlikelihood (arXiv 1908.04319), negative learning (arXiv 1908.07387).
    """
    logp_b = _summed(terms.logp_bt, terms.mask_bt)
    said_b = torch.exp(logp_b.detach()).clamp(max=SUREST)
    weight_b = torch.where(terms.advantage_b >= 0, torch.ones_like(said_b), said_b / (1.0 - said_b))
    loss_b = -weight_b * terms.advantage_b * logp_b
    return LossValue(loss_b, _per_token(weight_b, terms), _nowhere(terms))


def grpo(terms: Terms, bounds: Bounds) -> LossValue:
    """Return `ppo` without importance weights, for answers that ``prox`` drew itself.

    Advantages are those of `group_relative`. Source: GRPO (arXiv 2402.03300), the sum not divided
    by the answer's length (Dr. GRPO, arXiv 2503.20783).
    """
    return ppo(replace(terms, mu_bt=terms.prox_bt), bounds)


def rloo(terms: Terms, bounds: Bounds) -> LossValue:
    """Return −min(R·A, clip(R, 1 − low, 1 + high)·A), R = the sequence's pi/prox.

    For answers that ``prox`` drew itself, with advantages of `leave_one_out`; the whole answer is
    one action. Source: RLOO (arXiv 2402.14740), which has no clip: that is TRL's, of PPO.
    """
    log_ratio_b = _summed(terms.logp_bt - terms.prox_bt.detach(), terms.mask_bt)
    surrogate_b1, stopped_b1 = _clipped(log_ratio_b[:, None], terms.advantage_b, bounds)
    ones_bt = torch.ones_like(terms.prox_bt)
    return LossValue(surrogate_b1[:, 0], ones_bt, stopped_b1 & terms.mask_bt)


def dpo(terms: Terms, bounds: Bounds) -> LossValue:
    """Return −log sigmoid(beta·(v_wanted − v_given)), v = Σ_t log(pi/anchor), of pairs.

    The first half of the sequences are the wanted answers, the second the given ones, in the same
    order. The loss of a pair stands with its wanted answer, the given one has 0. Advantages have
    no part in it. Source: DPO (arXiv 2305.18290).
    """
    moved_b = _summed(terms.logp_bt - terms.anchor_bt.detach(), terms.mask_bt)
    wanted_p, given_p = moved_b.chunk(2)
    margin_p = bounds.beta * (wanted_p - given_p)
    loss_p = -logsigmoid(margin_p)
    weight_p = (bounds.beta * torch.sigmoid(-margin_p)).detach()
    return LossValue(
        torch.cat([loss_p, torch.zeros_like(loss_p)]),
        _per_token(torch.cat([weight_p, weight_p]), terms),
        _nowhere(terms),
    )


LOSSES: dict[str, Loss] = {
    "ppo": ppo,
    "topr": topr,
    "cispo": cispo,
    "awr": awr,
    "kto": kto,
    "likelihood": likelihood,
    "grpo": grpo,
    "rloo": rloo,
    "dpo": dpo,
}
NEED_LOGPROBS = frozenset({"ppo", "topr", "cispo"})
"""Losses that read ``mu``: an answer whose probabilities were not logged, or are not those it was
drawn with, has no place in them."""

IMITATE = frozenset({"awr", "likelihood"})
"""Losses that cannot take back what they taught: what is discouraged is hardly pushed, or not."""

OTHERWISE = "kto"
"""What such an answer is learned by instead: bounded whether it is encouraged or discouraged."""


def push(loss: str, bounds: Bounds, advantage: float, odds: float) -> float:
    """Return −dloss/dΣ_t log pi of an answer at the start of an update, but for importance weights.

    ``odds`` are pi/(1 − pi) of the whole answer.
    """
    if loss == "awr":
        most = math.log(LARGEST_AWR_WEIGHT)  # an exponential of more than 709 overflows
        return math.exp(min(advantage / bounds.awr_temperature, most))
    if loss == "likelihood" and advantage < 0.0:
        return advantage * odds
    return advantage


def odds_of(logp: float) -> float:
    """Return pi/(1 − pi) of an answer's log-probability, the bound of `likelihood` kept."""
    said = min(math.exp(logp), SUREST)
    return said / (1.0 - said)


def importance_weights(prox_bt: Tensor, mu_bt: Tensor, cap: float) -> Tensor:
    """Return min(prox/mu, cap) per token, a constant of the loss."""
    return torch.clamp(torch.exp(prox_bt - mu_bt), max=cap).detach()


def anchor_penalty(logp_bt: Tensor, anchor_bt: Tensor) -> Tensor:
    """Return exp(a − p) − 1 − (a − p) per token: 0 at the anchor, positive elsewhere.

    This is the k3 form (Schulman, "Approximating KL divergence", 2020). On tokens drawn from an
    older policy it is a penalty, not an unbiased estimate of KL(pi‖anchor). Beyond `FAR` below the
    anchor it goes on as a straight line: an exponential of one token that the policy has given up,
    drawn at a low temperature, would be the whole step, or no number.
    """
    below_bt = anchor_bt.detach() - logp_bt
    near_bt = below_bt.clamp(max=FAR)
    return torch.exp(near_bt) * (1.0 + below_bt - near_bt) - 1.0 - below_bt


def group_relative(reward_gk: Tensor) -> Tensor:
    """Return (r − mean)/(std + 1e-4) of each answer in its group of k: GRPO (arXiv 2402.03300).

    The paper adds nothing to the deviation, TRL does.
    """
    centred_gk = reward_gk - reward_gk.mean(1, keepdim=True)
    return centred_gk / (reward_gk.std(1, keepdim=True) + 1e-4)


def leave_one_out(reward_gk: Tensor) -> Tensor:
    """Return each reward minus the mean of its group's others: RLOO (arXiv 2402.14740)."""
    others_gk = (reward_gk.sum(1, keepdim=True) - reward_gk) / (reward_gk.shape[1] - 1)
    return reward_gk - others_gk


def _clipped(log_ratio: Tensor, advantage_b: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Return the clipped surrogate, and True where the clip leaves it without gradient."""
    ratio = torch.exp(log_ratio)
    lowest, highest = 1.0 - bounds.clip_low, 1.0 + bounds.clip_high
    advantage_b1 = advantage_b[:, None]
    surrogate = -torch.minimum(
        ratio * advantage_b1, torch.clamp(ratio, lowest, highest) * advantage_b1
    )
    stopped = torch.where(advantage_b1 > 0, ratio > highest, ratio < lowest)
    return surrogate, stopped.detach()


def _summed(value_bt: Tensor, mask_bt: Tensor) -> Tensor:
    return (value_bt * mask_bt).sum(1)


def _per_token(weight_b: Tensor, terms: Terms) -> Tensor:
    return weight_b[:, None].expand_as(terms.prox_bt)


def _nowhere(terms: Terms) -> Tensor:
    return torch.zeros_like(terms.mask_bt)
