"""One micro-batch update: experiences in, better adapters and a truthful account out.

Per response token of the used experiences, and per token of the corrections,

    loss = Σ_i u_i / scale · Σ_t [ w_t · clipped surrogate + kl_weight · anchor penalty ]
         + correction_weight / scale · mean over corrections of Σ_t −log pi

with u_i equal per user (each user's experiences share one weight) and ``scale`` a constant number
of tokens, so that long answers are neither favoured nor punished (arXiv 2503.20783). See
`learner.losses` for the terms and `learner.value` for the advantage.

Example::

    settings = load_settings()
    policy = load_policy(settings)
    state = new_train_state(policy, settings.learner)
    fresh = tuple(
        experience_of(
            sample,
            offset=offset,
            correction_ids=correction_ids(policy.tokenizer, sample.correction)
            if sample.correction
            else (),
        )
        for offset, sample in enumerate(samples)
    )
    batch = MicroBatch(fresh=fresh, corrections=tuple(e for e in fresh if e.correction_ids))
    result = update(state, batch, settings.learner, settings.engine.max_model_len)
    result.stats.policy_loss, result.stats.kl, result.stats.used
    save_adapter(policy, directory)  # serve it, or go on: the same policy object has learned
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from msgspec import Struct
from torch import Tensor

from contracts.settings import Learner
from learner.buckets import Bucket, TokenSequence, bucketed, padded
from learner.experience import Experience
from learner.losses import anchor_penalty, clipped_surrogate, importance_weights, is_clipped
from learner.policy import Policy
from learner.value import Spread, ValueHead, advantages

USER_FEATURES = 1
_BETAS = (0.9, 0.98)


class MicroBatch(Struct, frozen=True, kw_only=True):
    """What one update learns from.

    ``replayed`` and ``corrections`` were learned from before, except corrections of ``fresh``.
    ``served_sequence`` is the newest release number seen serving; staleness is counted from it.
    """

    fresh: tuple[Experience, ...]
    replayed: tuple[Experience, ...] = ()
    corrections: tuple[Experience, ...] = ()
    served_sequence: int = 0


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a fresh experience: ``used``, or the reason it was dropped for."""

    sample_id: str
    decision_id: str
    offset: int
    outcome: str
    user_reward_mean: float | None


class UpdateStats(Struct, frozen=True, kw_only=True):
    """Figures of one update; losses are those of the last inner epoch, before its step."""

    policy_loss: float = 0.0
    kl: float = 0.0
    correction_loss: float = 0.0
    value_loss: float = 0.0
    clip_share: float = 0.0
    mean_weight: float = 1.0
    grad_norm: float = 0.0
    reward_mean: float = 0.0
    advantage_scale: float = 1.0
    used: int = 0
    replayed: int = 0
    corrections: int = 0
    tokens: int = 0
    dropped: dict[str, int] = {}


class UpdateResult(Struct, frozen=True):
    """The figures, and one outcome per fresh experience in the order given."""

    stats: UpdateStats
    outcomes: tuple[Outcome, ...]


class TrainState:
    """All that an update changes: adapters, baseline, both optimizers and the running spread."""

    def __init__(self, policy: Policy, config: Learner) -> None:
        self.policy = policy
        self.value = ValueHead(policy.hidden_size, USER_FEATURES, config.seed)
        self.optimizer = torch.optim.AdamW(
            list(policy.adapters().values()),
            lr=config.learning_rate,
            betas=_BETAS,
            weight_decay=0.0,
        )
        self.value_optimizer = torch.optim.AdamW(
            self.value.parameters(), lr=config.value_learning_rate, weight_decay=0.0
        )
        self.spread = Spread()


class _Scored(Struct, frozen=True):
    """A usable experience with what the frozen parts say of it."""

    experience: Experience
    prox: list[float]
    anchor: list[float]
    end_h: Tensor


class _Weighted(Struct, frozen=True):
    scored: tuple[_Scored, ...]
    advantage_b: Tensor
    weight_b: Tensor


def new_train_state(policy: Policy, config: Learner) -> TrainState:
    """Return a fresh state around a policy; equal seeds give equal states."""
    return TrainState(policy, config)


def update(state: TrainState, batch: MicroBatch, config: Learner, max_tokens: int) -> UpdateResult:
    """Learn from one micro-batch, in place; deterministic given state, batch and config.

    ``max_tokens`` bounds prompt and response together; longer experiences are dropped.
    """
    reasons: dict[str, str] = {}
    candidates = [*batch.fresh, *batch.replayed]
    usable = []
    for experience in candidates:
        reason = _unusable(experience, batch.served_sequence, config, max_tokens)
        if reason:
            reasons[experience.sample_id] = reason
        else:
            usable.append(experience)
    scored = []
    for one in _score(state.policy, usable, config.bucket):
        if _log_ratio(one) > config.max_log_ratio:
            reasons[one.experience.sample_id] = "log-ratio"
        else:
            scored.append(one)
    weighted, value_loss = _weigh(state, scored, reasons, config)
    corrections = _correction_sequences(batch.corrections, max_tokens)
    stats = UpdateStats()
    for _ in range(config.inner_epochs):
        stats = _step(state, weighted, corrections, config)
    outcomes = tuple(
        Outcome(
            sample_id=e.sample_id,
            decision_id=e.decision_id,
            offset=e.offset,
            outcome=reasons.get(e.sample_id, "used"),
            user_reward_mean=e.user_reward_mean,
        )
        for e in batch.fresh
    )
    return UpdateResult(_account(stats, weighted, batch, outcomes, value_loss, state), outcomes)


def user_weights(users: Sequence[str]) -> list[float]:
    """Return weights that add up to 1, with the same total for every user."""
    counts = Counter(users)
    return [1.0 / (counts[user] * len(counts)) for user in users]


def _unusable(
    experience: Experience, served_sequence: int, config: Learner, max_tokens: int
) -> str | None:
    if not experience.prompt_ids or not experience.token_ids:
        return "no-tokens"
    if len(experience.prompt_ids) + len(experience.token_ids) > max_tokens:
        return "too-long"
    if experience.temperature <= 0.0:
        return "greedy"  # a choice without chance has no probability to correct for
    if served_sequence - experience.behaviour_sequence > config.max_version_lag:
        return "stale"
    return None


def _score(policy: Policy, experiences: Sequence[Experience], size: int) -> list[_Scored]:
    sequences = [TokenSequence(e.prompt_ids, e.token_ids, e.temperature) for e in experiences]
    found: dict[int, _Scored] = {}
    with torch.no_grad():
        for bucket in bucketed(sequences, size):
            prox_bt, _ = policy.score(bucket)
            anchor_bt, end_bh = policy.score(bucket, adapted=False)
            for row, place in enumerate(bucket.members):
                mask = bucket.mask_bt[row]
                found[place] = _Scored(
                    experiences[place],
                    prox_bt[row][mask].tolist(),
                    anchor_bt[row][mask].tolist(),
                    end_bh[row],
                )
    return [found[place] for place in range(len(experiences))]


def _log_ratio(scored: _Scored) -> float:
    mu = scored.experience.logprobs
    return abs(sum(scored.prox) - sum(mu)) if mu else 0.0


def _weigh(
    state: TrainState, scored: Sequence[_Scored], reasons: dict[str, str], config: Learner
) -> tuple[_Weighted, float]:
    """Return advantages and weights of what is used, after one lesson of the baseline.

    The advantage uses the baseline from before it saw these rewards. Without logged probabilities
    a discouraged answer has no bound on its weight, so only encouraged ones are used, with weight
    1 (TOPR, arXiv 2503.14286: the ratio matters for negatives alone).
    """
    if not scored:
        return _Weighted((), torch.zeros(0), torch.zeros(0)), 0.0
    ends_bh = torch.stack([one.end_h for one in scored])
    features_bf = torch.tensor([[one.experience.user_reward_mean or 0.0] for one in scored])
    reward_b = torch.tensor([one.experience.reward for one in scored])
    with torch.no_grad():
        residual_b = reward_b - state.value(ends_bh, features_bf)
    state.spread = state.spread.seen(residual_b)
    advantage_b = advantages(residual_b, state.spread)
    weight_b = torch.tensor(user_weights([one.experience.user_id for one in scored]))
    value_loss = 0.0
    for _ in range(config.inner_epochs):
        state.value_optimizer.zero_grad()
        error_b = state.value(ends_bh, features_bf) - reward_b
        loss = (weight_b * error_b.pow(2)).sum()
        loss.backward()
        state.value_optimizer.step()
        value_loss = float(loss.detach())
    kept = []
    for place, one in enumerate(scored):
        if one.experience.logprobs or advantage_b[place] > 0:
            kept.append(place)
        else:
            reasons[one.experience.sample_id] = "no-logprobs"
    chosen = tuple(scored[place] for place in kept)
    weights = user_weights([one.experience.user_id for one in chosen])
    return _Weighted(chosen, advantage_b[kept], torch.tensor(weights)), value_loss


def _correction_sequences(
    corrections: Sequence[Experience], max_tokens: int
) -> list[TokenSequence]:
    sequences = [TokenSequence(e.prompt_ids, e.correction_ids) for e in corrections]
    return [s for s in sequences if s.prompt_ids and s.response_ids and len(s) <= max_tokens]


def _step(
    state: TrainState,
    weighted: _Weighted,
    corrections: Sequence[TokenSequence],
    config: Learner,
) -> UpdateStats:
    """Take one optimizer step over the whole micro-batch, bucket by bucket."""
    parameters = list(state.policy.adapters().values())
    state.optimizer.zero_grad()
    policy_loss = kl = clipped = weight_sum = correction_loss = 0.0
    tokens = 0
    sequences = [
        TokenSequence(
            one.experience.prompt_ids, one.experience.token_ids, one.experience.temperature
        )
        for one in weighted.scored
    ]
    for bucket in bucketed(sequences, config.bucket):
        part = _bucket_loss(state.policy, weighted, bucket, config)
        (part.policy + config.kl_weight * part.kl).backward()
        policy_loss += float(part.policy.detach())
        kl += float(part.kl.detach())
        clipped += part.clipped
        weight_sum += part.weight_sum
        tokens += int(bucket.mask_bt.sum())
    for bucket in bucketed(corrections, config.bucket):
        logp_bt, _ = state.policy.score(bucket)
        loss = -(logp_bt * bucket.mask_bt).sum() / (len(corrections) * config.length_scale)
        (config.correction_weight * loss).backward()
        correction_loss += float(loss.detach())
    norm = 0.0
    if sequences or corrections:
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        state.optimizer.step()
    return UpdateStats(
        policy_loss=policy_loss,
        kl=kl,
        correction_loss=correction_loss,
        clip_share=clipped / max(tokens, 1),
        mean_weight=weight_sum / tokens if tokens else 1.0,
        grad_norm=norm,
        corrections=len(corrections),
        tokens=tokens,
    )


class _Part(Struct, frozen=True):
    policy: Tensor
    kl: Tensor
    clipped: float
    weight_sum: float


def _bucket_loss(policy: Policy, weighted: _Weighted, bucket: Bucket, config: Learner) -> _Part:
    members = list(bucket.members)
    width = bucket.rows_bt.shape[1]
    chosen = [weighted.scored[place] for place in members]
    prox_bt = padded([one.prox for one in chosen], width)
    mu_bt = padded([one.experience.logprobs or one.prox for one in chosen], width)
    anchor_bt = padded([one.anchor for one in chosen], width)
    advantage_b = weighted.advantage_b[members]
    logp_bt, _ = policy.score(bucket)
    weights_bt = importance_weights(prox_bt, mu_bt, config.importance_cap)
    surrogate_bt = clipped_surrogate(
        logp_bt, prox_bt, advantage_b, config.clip_low, config.clip_high
    )
    share_bt = bucket.mask_bt * weighted.weight_b[members][:, None] / config.length_scale
    with torch.no_grad():
        clip_bt = is_clipped(logp_bt, prox_bt, advantage_b, config.clip_low, config.clip_high)
    return _Part(
        (share_bt * weights_bt * surrogate_bt).sum(),
        (share_bt * anchor_penalty(logp_bt, anchor_bt)).sum(),
        float((clip_bt & bucket.mask_bt).sum()),
        float((weights_bt * bucket.mask_bt).sum()),
    )


def _account(
    stats: UpdateStats,
    weighted: _Weighted,
    batch: MicroBatch,
    outcomes: Sequence[Outcome],
    value_loss: float,
    state: TrainState,
) -> UpdateStats:
    fresh = {experience.sample_id for experience in batch.fresh}
    ids = [one.experience.sample_id for one in weighted.scored]
    used = sum(1 for sample_id in ids if sample_id in fresh)
    rewards = [experience.reward for experience in batch.fresh]
    fields = {name: getattr(stats, name) for name in stats.__struct_fields__}
    return UpdateStats(
        **fields
        | {
            "value_loss": value_loss,
            "reward_mean": sum(rewards) / max(len(rewards), 1),
            "advantage_scale": state.spread.scale(),
            "used": used,
            "replayed": len(ids) - used,
            "dropped": dict(Counter(o.outcome for o in outcomes if o.outcome != "used")),
        }
    )
