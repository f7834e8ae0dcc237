"""The learned baseline: what reward and what cost to expect before the answer is known.

It sees the base model's hidden state at the end of the prompt and a few numbers about the user;
no gradient flows into the policy.
"""

from __future__ import annotations

import math

import torch
from msgspec import Struct
from torch import Tensor, nn

WIDTH = 128
DECAY = 0.9
LEAST_SPREAD = 0.2
LARGEST_ADVANTAGE = 3.0


EXPECTED = 2
"""What a prompt is expected to bring: reward, and cost."""


class ValueHead(nn.Module):
    """Two layers on a normalised hidden state and ``features`` numbers; starts at 0 everywhere."""

    def __init__(self, hidden: int, features: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.inner = nn.Linear(hidden + features, WIDTH)
        self.outer = nn.Linear(WIDTH, EXPECTED)
        with torch.no_grad():
            bound = 1.0 / math.sqrt(hidden + features)
            self.inner.weight.uniform_(-bound, bound, generator=generator)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def forward(self, hidden_bh: Tensor, features_bf: Tensor) -> Tensor:
        """Return the expected reward and cost of each prompt, shape b×2."""
        joined = torch.cat([self.norm(hidden_bh), features_bf], dim=-1)
        value_bk: Tensor = self.outer(torch.tanh(self.inner(joined)))
        return value_bk


class Spread(Struct, frozen=True):
    """Running root mean square of reward − baseline (exponential, bias-corrected)."""

    mean_square: float = 0.0
    weight: float = 0.0

    def seen(self, residual_b: Tensor) -> Spread:
        """Return the spread after one more batch of residuals."""
        square = float(residual_b.double().pow(2).mean())
        return Spread(
            DECAY * self.mean_square + (1.0 - DECAY) * square,
            DECAY * self.weight + (1.0 - DECAY),
        )

    def scale(self) -> float:
        """Return what to divide residuals by; never below 0.2, so that calm data stays calm."""
        if self.weight == 0.0:
            return 1.0
        return max(math.sqrt(self.mean_square / self.weight), LEAST_SPREAD)


def advantages(residual_b: Tensor, spread: Spread) -> Tensor:
    """Return the scaled residuals, clipped to ±3."""
    return torch.clamp(residual_b / spread.scale(), -LARGEST_ADVANTAGE, LARGEST_ADVANTAGE)
