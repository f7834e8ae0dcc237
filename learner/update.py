"""One micro-batch update: experiences in, better adapters and a truthful account out.

Of the used experiences, and of the corrections,

    loss = Σ_i u_i / scale · [ loss of answer i + kl_weight · Σ_t anchor penalty ]
         + 1 / scale · mean over corrections of
               [ correction_weight · Σ_t −log pi(wanted) + preference_weight · DPO loss ]
         + practice.weight / scale · mean over answers drawn for practice of their loss

with u_i such that users count alike over the newest samples (`learner.advantage`), and ``scale`` a
constant number of tokens, so that length is neither favoured nor punished (arXiv 2503.20783).
The loss of an answer is the one of `learner.losses` that the settings name.

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
from collections.abc import Collection, Sequence

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace

from contracts.settings import Learner
from learner.advantage import (
    NOTHING,
    BaselineState,
    Weighed,
    baseline_of,
    observe_costs,
    put_back,
    weigh,
)
from learner.experience import BASELINE, LEAST_TEMPERATURE, Experience
from learner.ledger import (
    IMPUTED,
    NO_REWARD,
    PRICED,
    REVISED,
    TAUGHT,
    USED,
    Outcome,
    outcome_of,
)
from learner.micro_batch import MicroBatch
from learner.objective import (
    Objective,
    Passed,
    StepStats,
    add_passes,
    descend,
    needs_prox,
    pushes,
)
from learner.pairs import anchored, corrections_of, teachable
from learner.practice import mean_reward
from learner.revision import Lesson
from learner.scoring import Scored, score
from learner.train_state import TrainState

_NOTHING = Objective((), torch.zeros(0), torch.zeros(0))


class UpdateStats(StepStats, frozen=True, kw_only=True):
    """Figures of one update; those of the step are of the last one taken.

    ``reward_mean`` is of fresh rated samples, ``cost_mean`` of the silent ones, too; None where
    there are none.
    """

    value_loss: float = 0.0
    reward_mean: float | None = None
    advantage_scale: float = 1.0
    used: int = 0
    replayed: int = 0
    revised: int = 0
    corrections: int = 0
    cost_mean: float | None = None
    multiplier: float = 0.0
    pairs: int = 0
    imputed: int = 0
    priced: int = 0
    practised: int = 0
    practice_reward: float = 0.0
    dropped: dict[str, int] = msgspec.field(default_factory=dict)


class UpdateResult(Struct, frozen=True):
    """The figures, one outcome per fresh experience in the order given, and what was taught."""

    stats: UpdateStats
    outcomes: tuple[Outcome, ...]
    lessons: tuple[Lesson, ...] = ()


def update(state: TrainState, batch: MicroBatch, config: Learner, max_tokens: int) -> UpdateResult:
    """Learn from one micro-batch, in place; deterministic given state, batch and config.

    ``max_tokens`` bounds prompt and response together; longer experiences are dropped. Among
    several processes (`learner.ranks`) each makes a part of the passes, and all come to the same
    weights; RanksError when they do not.
    """
    moved = None if state.anchor is state.told_anchor else state.anchor
    with state.policy.together("update", batch, moved):
        state.told_anchor = state.anchor
        result = _update(state, batch, config, max_tokens)
        state.policy.ranks.check_equal(state.policy.adapters())
    return result


def _update(state: TrainState, batch: MicroBatch, config: Learner, max_tokens: int) -> UpdateResult:
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate * batch.pace
    reasons: dict[str, str] = {}
    cost_mean = observe_costs(state, batch, config)
    usable = _usable(state, batch, reasons, config, max_tokens)
    before = baseline_of(state)
    weighed, objective, passed = _begun(state, before, batch, usable, reasons, config, max_tokens)
    step, learned = _descend(state, objective, config, passed)
    if not learned:
        put_back(state, before)
        weighed, objective = NOTHING, _NOTHING
    lessons = weighed.lessons(pushes(objective, config))
    taught = {lesson.decision_id: lesson.coefficient for lesson in lessons}
    told = (
        _told(batch, config, max_tokens, state.policy.vocabulary_size) if learned else frozenset()
    )
    outcomes = tuple(
        outcome_of(e, reasons.get(e.sample_id, done if learned else "step-skipped"), taught, told)
        for group, done in (
            (batch.fresh, USED),
            (batch.revised, REVISED),
            ([e for e in batch.imputed if e.imputed != BASELINE], IMPUTED),
        )
        for e in group
    )
    priced = {e.sample_id for e in batch.imputed if learned and e.sample_id not in reasons} | told
    outcomes += tuple(
        outcome_of(e, PRICED if e.sample_id in priced else NO_REWARD, taught, told)
        for e in batch.imputed
        if e.imputed == BASELINE
    )
    stats = _account(step, objective, batch, outcomes)
    stats = msgspec.structs.replace(
        stats,
        value_loss=weighed.value_loss,
        advantage_scale=state.spread.scale(),
        cost_mean=cost_mean,
        multiplier=state.multiplier,
    )
    return UpdateResult(stats, outcomes, lessons)


def _told(batch: MicroBatch, config: Learner, max_tokens: int, vocabulary: int) -> frozenset[str]:
    """Return the samples whose corrections a step has learned from, earlier ones included."""
    if not (config.correction_weight or config.preference_weight):
        return frozenset()
    found = teachable(batch.corrections, max_tokens, vocabulary)
    return frozenset(e.sample_id for e in found)


def _usable(
    state: TrainState,
    batch: MicroBatch,
    reasons: dict[str, str],
    config: Learner,
    max_tokens: int,
) -> list[Experience]:
    """Return what can be scored and teaches; ``reasons`` gets the others.

    A debt does not grow stale: what an old answer taught is corrected however late. A new reward
    whose turn has not come yet is looked at, too, since its line in the ledger is written now.
    """
    usable = []
    for experience in (*batch.fresh, *batch.replayed, *batch.imputed):
        if batch.served_sequence - experience.behaviour_sequence > config.max_version_lag:
            reasons[experience.sample_id] = "stale"
        elif experience.imputed == BASELINE and state.multiplier == 0.0:
            reasons[experience.sample_id] = NO_REWARD
        else:
            usable.append(experience)
    usable += [debt.experience for debt in batch.owed]
    for experience in (*usable, *batch.revised):
        reason = unusable(experience, max_tokens, state.policy.vocabulary_size)
        if reason:
            reasons[experience.sample_id] = reason
    return [e for e in usable if e.sample_id not in reasons]


def _begun(
    state: TrainState,
    before: BaselineState,
    batch: MicroBatch,
    usable: Sequence[Experience],
    reasons: dict[str, str],
    config: Learner,
    max_tokens: int,
) -> tuple[Weighed, Objective, Passed | None]:
    """Return weights and objective, and the passes of its first step where they were made already.

    What the policy says of each answer before the update is what the passes of the first step find,
    so no passes are made for it. Only they tell which answers have to be dropped after all: then
    everything begins again without these, from the baseline as it was ``before``, which is rare.
    """
    policy = state.policy
    owed = {debt.experience.decision_id: debt.coefficient for debt in batch.owed}
    corrections = corrections_of(batch.corrections, max_tokens, policy.vocabulary_size)
    pairs = anchored(policy, state.anchor, corrections, config)

    def weighed_of(scored: Sequence[Scored]) -> tuple[Weighed, Objective]:
        weighed = weigh(state, scored, owed, batch.activity, config)
        given = (weighed.scored, weighed.advantage_b, weighed.weight_b, pairs)
        return weighed, Objective(*given, frozenset(owed), batch.practised)

    at_once = not needs_prox(usable, frozenset(owed), config)
    found = score(policy, state.anchor, usable, config.bucket_tokens, with_prox=not at_once)
    scored = _sound(found, reasons, owed, config)
    weighed, objective = weighed_of(scored)
    if not at_once or not scored:
        return weighed, objective, None
    passed = add_passes(policy, objective, config)
    told = [replace(one, prox=passed.prox[place]) for place, one in enumerate(scored)]
    sound = _sound(told, reasons, owed, config)
    if [*map(id, sound)] != [*map(id, told)]:
        put_back(state, before)
        return *weighed_of(sound), None
    return weighed, replace(objective, scored=tuple(told)), passed


def _sound(
    found: Sequence[Scored],
    reasons: dict[str, str],
    owed: Collection[str],
    config: Learner,
) -> list[Scored]:
    """Return what has finite numbers and the engine's agreement; ``reasons`` gets the others.

    What is owed needs no agreement: what taught most has moved furthest since, and is taken back
    without the probabilities of whoever drew it.
    """
    sound = []
    for one in found:
        far = bool(one.prox) and not _log_ratio(one) <= config.max_log_ratio
        if not _is_finite(one):
            reasons[one.experience.sample_id] = "not-finite"
        elif not far:
            sound.append(one)
        elif one.experience.decision_id in owed:
            sound.append(replace(one, experience=replace(one.experience, logprobs=())))
        else:
            reasons[one.experience.sample_id] = "log-ratio"
    return sound


def _descend(
    state: TrainState, objective: Objective, config: Learner, passed: Passed | None
) -> tuple[StepStats, bool]:
    """Take the inner epochs, up to a step that has to be skipped; ``passed`` is for the first.

    Return the figures of the last one taken and whether the weights learned: a batch whose first
    step was taken is in them, even when its second was skipped.
    """
    taken = StepStats()
    for epoch in range(config.inner_epochs):
        first = passed if epoch == 0 else None
        step = descend(state.policy, state.optimizer, objective, config, first)
        if step.skipped:
            return (taken, True) if epoch else (step, False)
        taken = step
    return taken, True


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
        return "no-temperature"
    return None


def _is_finite(scored: Scored) -> bool:
    values = (*scored.prox, *scored.anchor, *scored.experience.logprobs)
    return all(map(math.isfinite, values))


def _log_ratio(scored: Scored) -> float:
    mu = scored.experience.logprobs
    return abs(sum(scored.prox) - sum(mu)) if mu else 0.0


def _account(
    step: StepStats, objective: Objective, batch: MicroBatch, outcomes: Sequence[Outcome]
) -> UpdateStats:
    fresh = {experience.sample_id for experience in batch.fresh}
    debts = {debt.experience.sample_id for debt in batch.owed}
    silent = {e.sample_id for e in batch.imputed}
    imputed = {e.sample_id for e in batch.imputed if e.imputed != BASELINE}
    ids = [one.experience.sample_id for one in objective.scored]
    rewards = [experience.reward for experience in batch.fresh]
    return UpdateStats(
        **msgspec.structs.asdict(step),
        corrections=len(objective.corrections),
        pairs=sum(1 for one in objective.corrections if one.given),
        practised=len(objective.practised),
        practice_reward=mean_reward(objective.practised),
        reward_mean=sum(rewards) / len(rewards) if rewards else None,
        used=sum(1 for sample_id in ids if sample_id in fresh),
        replayed=sum(1 for sample_id in ids if sample_id not in fresh | debts | silent),
        imputed=sum(1 for sample_id in ids if sample_id in imputed),
        priced=sum(1 for outcome in outcomes if outcome.outcome == PRICED),
        revised=sum(1 for sample_id in ids if sample_id in debts),
        dropped=dict(Counter(o.outcome for o in outcomes if o.outcome not in (*TAUGHT, NO_REWARD))),
    )
