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

import math
from collections import Counter
from collections.abc import Sequence

import msgspec
import torch
from msgspec import Struct

from contracts.settings import Learner
from learner.buckets import TokenSequence
from learner.experience import Experience
from learner.objective import Objective, Scored, StepStats, descend, score
from learner.policy import Policy
from learner.value import Spread, ValueHead, advantages

USER_FEATURES = 1
LEAST_TEMPERATURE = 1e-2
"""Below it sampling is greedy for all purposes; divided by less, logits leave float32."""

_BETAS = (0.9, 0.98)
_NOTHING = Objective((), torch.zeros(0), torch.zeros(0))


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
    """What became of a fresh experience: ``used``, or why the weights did not learn from it."""

    sample_id: str
    decision_id: str
    offset: int
    outcome: str
    user_reward_mean: float | None


class UpdateStats(StepStats, frozen=True, kw_only=True):
    """Figures of one update; those of the step are of the last inner epoch."""

    value_loss: float = 0.0
    reward_mean: float = 0.0
    advantage_scale: float = 1.0
    used: int = 0
    replayed: int = 0
    corrections: int = 0
    dropped: dict[str, int] = msgspec.field(default_factory=dict)


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


def new_train_state(policy: Policy, config: Learner) -> TrainState:
    """Return a fresh state around a policy; equal seeds give equal states."""
    return TrainState(policy, config)


def update(state: TrainState, batch: MicroBatch, config: Learner, max_tokens: int) -> UpdateResult:
    """Learn from one micro-batch, in place; deterministic given state, batch and config.

    ``max_tokens`` bounds prompt and response together; longer experiences are dropped.
    """
    reasons: dict[str, str] = {}
    vocabulary = state.policy.vocabulary_size
    usable = []
    for experience in (*batch.fresh, *batch.replayed):
        reason = unusable(experience, max_tokens, vocabulary)
        if batch.served_sequence - experience.behaviour_sequence > config.max_version_lag:
            reason = "stale"
        if reason:
            reasons[experience.sample_id] = reason
        else:
            usable.append(experience)
    scored = []
    for one in score(state.policy, usable, config.bucket):
        if not _is_finite(one):
            reasons[one.experience.sample_id] = "not-finite"
        elif not _log_ratio(one) <= config.max_log_ratio:
            reasons[one.experience.sample_id] = "log-ratio"
        else:
            scored.append(one)
    weighed, value_loss = _weigh(state, scored, reasons, config)
    corrections = _correction_sequences(batch.corrections, max_tokens, vocabulary)
    objective = msgspec.structs.replace(weighed, corrections=corrections)
    step, learned = _descend(state, objective, config)
    otherwise = "used" if learned else "step-skipped"
    outcomes = tuple(
        Outcome(
            sample_id=e.sample_id,
            decision_id=e.decision_id,
            offset=e.offset,
            outcome=reasons.get(e.sample_id, otherwise),
            user_reward_mean=e.user_reward_mean,
        )
        for e in batch.fresh
    )
    taken = objective if learned else _NOTHING
    return UpdateResult(_account(step, taken, batch, outcomes, value_loss, state.spread), outcomes)


def _descend(state: TrainState, objective: Objective, config: Learner) -> tuple[StepStats, bool]:
    """Take the inner epochs, up to a step that has to be skipped.

    Return the figures of the last one and whether the weights learned: a batch whose first step
    was taken is in them, even when its second was skipped.
    """
    step = StepStats()
    for epoch in range(config.inner_epochs):
        step = descend(state.policy, state.optimizer, objective, config)
        if step.skipped:
            return step, epoch > 0
    return step, True


def user_weights(users: Sequence[str]) -> list[float]:
    """Return weights that add up to 1, with the same total for every user."""
    counts = Counter(users)
    return [1.0 / (counts[user] * len(counts)) for user in users]


def unusable(experience: Experience, max_tokens: int, vocabulary: int) -> str | None:
    """Return why an experience cannot be scored, None when it can."""
    if not experience.prompt_ids or not experience.token_ids:
        return "no-tokens"
    ids = (*experience.prompt_ids, *experience.token_ids)
    if len(ids) > max_tokens:
        return "too-long"
    if min(ids) < 0 or max(ids) >= vocabulary:
        return "unknown-token"
    if not experience.temperature >= LEAST_TEMPERATURE:
        return "greedy"  # a choice without chance has no probability to correct for
    return None


def _is_finite(scored: Scored) -> bool:
    values = (*scored.prox, *scored.anchor, *scored.experience.logprobs)
    return all(map(math.isfinite, values))


def _log_ratio(scored: Scored) -> float:
    mu = scored.experience.logprobs
    return abs(sum(scored.prox) - sum(mu)) if mu else 0.0


def _weigh(
    state: TrainState, scored: Sequence[Scored], reasons: dict[str, str], config: Learner
) -> tuple[Objective, float]:
    """Return advantages and weights of what is used, after one lesson of the baseline.

    The advantage uses the baseline from before it saw these rewards. Without logged probabilities
    a discouraged answer has no bound on its weight, so only encouraged ones are used, with weight
    1 (TOPR, arXiv 2503.14286: the ratio matters for negatives alone).
    """
    if not scored:
        return _NOTHING, 0.0
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
    return Objective(chosen, advantage_b[kept], torch.tensor(weights)), value_loss


def _correction_sequences(
    corrections: Sequence[Experience], max_tokens: int, vocabulary: int
) -> tuple[TokenSequence, ...]:
    sequences = [TokenSequence(e.prompt_ids, e.correction_ids) for e in corrections]
    return tuple(
        sequence
        for sequence in sequences
        if sequence.prompt_ids
        and sequence.response_ids
        and len(sequence) <= max_tokens
        and min(sequence.prompt_ids) >= 0
        and max(sequence.prompt_ids) < vocabulary
    )


def _account(
    step: StepStats,
    objective: Objective,
    batch: MicroBatch,
    outcomes: Sequence[Outcome],
    value_loss: float,
    spread: Spread,
) -> UpdateStats:
    fresh = {experience.sample_id for experience in batch.fresh}
    ids = [one.experience.sample_id for one in objective.scored]
    used = sum(1 for sample_id in ids if sample_id in fresh)
    rewards = [experience.reward for experience in batch.fresh]
    return UpdateStats(
        **msgspec.structs.asdict(step),
        corrections=len(objective.corrections),
        value_loss=value_loss,
        reward_mean=sum(rewards) / max(len(rewards), 1),
        advantage_scale=spread.scale(),
        used=used,
        replayed=len(ids) - used,
        dropped=dict(Counter(o.outcome for o in outcomes if o.outcome != "used")),
    )
