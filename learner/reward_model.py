"""A reward model: the base's lower blocks with LoRA, and a few scalar heads that vote.

It says of an answer what reward to expect and how far its members disagree. A member is one linear
head on the mean of the answer's last hidden states; all share one LoRA. See
`learner.reward_training` for how it is made. Shape suffixes: n answers, k members, h hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contracts.errors import ManifestError, SettingsError
from contracts.manifest import read_manifest, verify_signed
from contracts.settings import Settings
from contracts.signing import trusted_keys
from learner.adapters import Adapting, adapt, restore_adapters
from learner.buckets import Bucket, TokenSequence, bucketed
from learner.calibration import Calibration
from learner.policy import Policy
from learner.raters import Floats
from learner.reward_card import RewardModelCard, read_card

WEIGHTS = "reward_model.safetensors"
FORM: Literal["reward-model"] = "reward-model"
PASS_TOKENS = 4096
"""Tokens in one forward pass where nothing is kept for a gradient."""


class Expected(Struct, frozen=True):
    """The reward to expect: value of the members' mean score, and their standard deviation.

    ``conservative`` is mean − k·std, never below -1: what is said where nobody can check it.
    """

    mean: float
    std: float
    conservative: float


class RewardHeads(nn.Module):
    """``members`` linear heads on standardised answer states; all zero at first."""

    mean_h: Tensor
    scale_h: Tensor

    def __init__(self, hidden: int, members: int) -> None:
        super().__init__()
        self.weight_kh = nn.Parameter(torch.zeros(members, hidden))
        self.bias_k = nn.Parameter(torch.zeros(members))
        self.register_buffer("mean_h", torch.zeros(hidden))
        self.register_buffer("scale_h", torch.ones(hidden))

    def forward(self, state_nh: Tensor) -> Tensor:
        """Return every member's score of every answer, n×k."""
        standard_nh = (state_nh - self.mean_h) / self.scale_h
        scores: Tensor = standard_nh @ self.weight_kh.T + self.bias_k
        return scores


class RewardModel:
    """A trained model; ``version`` is the id that its manifest gives it."""

    def __init__(
        self, trunk: Policy, heads: RewardHeads, card: RewardModelCard, version: str
    ) -> None:
        self.trunk = trunk
        self.heads = heads
        self.card = card
        self.version = version

    def score(self, answers: Sequence[TokenSequence]) -> list[Expected]:
        """Return the reward to expect of each answer; deterministic given the answers."""
        scores_nk = member_scores(self.trunk, self.heads, answers, self.card.recipe.max_tokens)
        # The value of the mean score, not the mean of values: it is what was calibrated and judged.
        value_n = self.card.calibration.value(scores_nk.mean(axis=1))
        std_n = member_values(scores_nk, self.card.calibration).std(axis=1)
        return [
            Expected(mean, std, max(mean - self.card.recipe.uncertainty * std, -1.0))
            for mean, std in zip(value_n.tolist(), std_n.tolist(), strict=True)
        ]


def member_values(scores_nk: Floats, calibration: Calibration) -> Floats:
    """Return the calibrated value of each member's score, n×k, in [-1, 1]."""
    return np.asarray(calibration.value(scores_nk))


def member_scores(
    trunk: Policy, heads: RewardHeads, answers: Sequence[TokenSequence], max_tokens: int
) -> Floats:
    """Return every member's raw score of every answer, n×k."""
    with torch.no_grad():
        found = heads(answer_states(trunk, answers, max_tokens))
    return np.asarray(found.double().numpy())


def answer_states(
    trunk: Policy, answers: Sequence[TokenSequence], max_tokens: int, *, adapted: bool = True
) -> Tensor:
    """Return the state of every answer, n×h, without a gradient."""
    state_nh = torch.zeros(len(answers), trunk.hidden_size)
    with torch.no_grad():
        for bucket in bucketed([cut(each, max_tokens) for each in answers], PASS_TOKENS):
            state_nh[list(bucket.members)] = bucket_states(trunk, bucket, adapted=adapted)
    return state_nh


def bucket_states(trunk: Policy, bucket: Bucket, *, adapted: bool = True) -> Tensor:
    """Return the mean of the last hidden states over each answer's own tokens, b×h."""
    rows_nh = trunk.answer_rows(bucket, adapted=adapted).float()
    return torch.stack([part.mean(0) for part in rows_nh.split(bucket.mask_bt.sum(1).tolist())])


def cut(answer: TokenSequence, max_tokens: int) -> TokenSequence:
    """Return the answer's beginning after the end of its prompt.

    A prompt leaves the answer half the room at least, and all of it that it does not fill.
    """
    room = max(max_tokens - len(answer.prompt_ids), max_tokens // 2, 1)
    response = answer.response_ids[:room]
    rest = max_tokens - len(response)
    return TokenSequence(answer.prompt_ids[-rest:] if rest else (), response)


def load_reward_model(settings: Settings, directory: Path) -> RewardModel:
    """Load a reward model that a trusted key signed, made for this policy and ``policy.model``.

    Raises ManifestError when it is not what its manifest says, or nobody trusted signed it;
    SettingsError when it belongs to another policy, or to another base, whose tokens would mean
    other words.
    """
    version, _ = read_manifest(directory)
    manifest = verify_signed(directory, version, trusted_keys(settings))
    if manifest.form != FORM:
        raise ManifestError(
            f"{directory} has form {manifest.form!r}, not {FORM!r}; make a reward model with "
            "'python -m learner reward-model'"
        )
    if manifest.policy != settings.policy.name:
        raise SettingsError(
            f"the reward model {directory} belongs to policy {manifest.policy!r}, whose judges are "
            f"others than those of {settings.policy.name!r}: name one of its own in "
            "learner.reward_model, or in its segment's reward_model"
        )
    card = read_card(directory)
    trunk = adapt(settings.policy.model, adapting(card))
    if trunk.base != card.base:
        raise SettingsError(
            f"learner.reward_model {directory} belongs to base {card.base}, but policy.model is "
            f"{trunk.base}; make one for this base with 'python -m learner reward-model'"
        )
    heads = RewardHeads(trunk.hidden_size, card.recipe.members)
    try:
        restore(trunk, heads, load_file(directory / WEIGHTS))
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise ManifestError(
            f"{directory / WEIGHTS} does not fit its card ({error}); make another model with "
            "'python -m learner reward-model', and name it in learner.reward_model"
        ) from error
    return RewardModel(trunk, heads, card, version)


def named_reward_model(settings: Settings) -> RewardModel | None:
    """Return the reward model that the settings name, None when they name none."""
    named = settings.learner.reward_model
    return load_reward_model(settings, Path(named)) if named else None


def adapting(card: RewardModelCard) -> Adapting:
    """Return the adapters that a card tells of."""
    recipe = card.recipe
    return Adapting(
        rank=recipe.rank,
        alpha=recipe.alpha,
        seed=recipe.seed,
        blocks=card.blocks,
        adapted=card.adapted,
    )


def save_weights(trunk: Policy, heads: RewardHeads, directory: Path) -> None:
    """Write adapters and heads; equal weights give equal bytes."""
    tensors = {f"adapter/{name}": value for name, value in trunk.adapters().items()}
    tensors |= {f"heads/{name}": value for name, value in heads.state_dict().items()}
    save_file(
        {name: value.detach().clone() for name, value in tensors.items()}, directory / WEIGHTS
    )


def restore(trunk: Policy, heads: RewardHeads, tensors: dict[str, Tensor]) -> None:
    """Set adapters and heads to what `save_weights` wrote."""
    parts: dict[str, dict[str, Tensor]] = {"adapter": {}, "heads": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    restore_adapters(trunk, parts["adapter"])
    heads.load_state_dict(parts["heads"])
