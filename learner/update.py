"""One micro-batch update: experiences in, better adapters and a truthful account out.

Of the used experiences, and of the corrections,

    loss = Σ_i u_i / scale · [ loss of answer i + kl_weight · Σ_t anchor penalty ]
         + 1 / scale · Σ over corrections, each by its share, of
               [ correction_weight · Σ_t −log pi(wanted) + preference_weight · DPO loss ]
         + practice.weight / scale · mean over answers drawn for practice of their loss

with u_i such that users count alike over the newest samples (`learner.advantage`), in steps as
long as the batch is full, and ``scale`` a
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

from collections import Counter
from collections.abc import Sequence

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace

from contracts.settings import Learner
from learner.admission import UNDONE, admitted, agreed
from learner.advantage import (
    NOTHING,
    BaselineState,
    Weighed,
    baseline_of,
    observe_costs,
    put_back,
    weigh,
)
from learner.experience import BASELINE, Experience
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
    """The figures, one outcome per fresh experience in the order given, and what was taught.

    ``undone`` are the retracted decisions of which nothing is left in the policy.
    """

    stats: UpdateStats
    outcomes: tuple[Outcome, ...]
    lessons: tuple[Lesson, ...] = ()
    undone: frozenset[str] = frozenset()


def update(state: TrainState, batch: MicroBatch, config: Learner, max_tokens: int) -> UpdateResult:
    """Learn from one micro-batch, in place; deterministic given state, batch and config.

    ``max_tokens`` bounds prompt and response together; longer experiences are dropped. Among
    several processes (`learner.ranks`) each makes a part of the passes, and all come to the same
    weights; RanksError when they do not.
    """
    moved = None if state.anchor is state.told_anchor else state.anchor
    with state.policy.together("update", batch, moved):
        state.told_anchor = state.anchor
        result = _update(_Turn(state, batch, config, max_tokens, {}))
        others = (state.spread, state.multiplier, state.anchor.version)
        state.policy.ranks.check_equal(state.stepped(), *others)
    return result


class _Turn(Struct, frozen=True):
    """One update under way; ``reasons`` says of samples, by id, why nothing is learned of them."""

    state: TrainState
    batch: MicroBatch
    config: Learner
    max_tokens: int
    reasons: dict[str, str]


def _update(turn: _Turn) -> UpdateResult:
    state, batch, config = turn.state, turn.batch, turn.config
    cost_mean = observe_costs(state, batch, config)
    usable = admitted(state, batch, turn.reasons, config, turn.max_tokens)
    before = baseline_of(state)
    weighed, objective, passed = _begun(turn, before, usable)
    # AdamW's steps are as long however small losses usually are.
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate * batch.pace * weighed.stride
    step, learned = _descend(state, objective, config, passed)
    if not learned:
        put_back(state, before)
        weighed, objective = NOTHING, _NOTHING
    lessons = weighed.lessons(pushes(objective, config))
    outcomes = _outcomes(turn, lessons, learned)
    stats = replace(
        _account(step, objective, batch, outcomes),
        value_loss=weighed.value_loss,
        cost_mean=cost_mean,
        multiplier=state.multiplier,
    )
    undone = frozenset(
        debt.experience.decision_id
        for debt in batch.owed
        if turn.reasons.get(debt.experience.sample_id) == UNDONE
    )
    return UpdateResult(stats, outcomes, lessons, undone)


def _outcomes(turn: _Turn, lessons: Sequence[Lesson], learned: bool) -> tuple[Outcome, ...]:
    """Return what became of each fresh, revised and silent experience."""
    batch, reasons = turn.batch, turn.reasons
    taught = {lesson.decision_id: lesson.coefficient for lesson in lessons}
    told = _told(turn) if learned else frozenset()
    silent = [e for e in batch.imputed if e.imputed == BASELINE]
    priced = {e.sample_id for e in silent if learned and e.sample_id not in reasons} | told
    done = [(e, USED) for e in batch.fresh]
    done += [(e, REVISED) for e in batch.revised]
    done += [(e, IMPUTED) for e in batch.imputed if e.imputed != BASELINE]
    found = [
        (e, reasons.get(e.sample_id, outcome if learned else "step-skipped")) for e, outcome in done
    ]
    found += [(e, PRICED if e.sample_id in priced else NO_REWARD) for e in silent]
    return tuple(outcome_of(e, outcome, taught, told) for e, outcome in found)


def _told(turn: _Turn) -> frozenset[str]:
    """Return the samples whose corrections a step has learned from, earlier ones included."""
    if not (turn.config.correction_weight or turn.config.preference_weight):
        return frozenset()
    vocabulary = turn.state.policy.vocabulary_size
    found = teachable(turn.batch.corrections, turn.max_tokens, vocabulary)
    return frozenset(e.sample_id for e in found)


def _begun(
    turn: _Turn, before: BaselineState, usable: Sequence[Experience]
) -> tuple[Weighed, Objective, Passed | None]:
    """Return weights and objective, and the passes of its first step where they were made already.

    What the policy says of each answer before the update is what the passes of the first step find,
    so no passes are made for it. Only they tell which answers have to be dropped after all: then
    everything begins again without these, from the baseline as it was ``before``, which is rare.
    """
    state, batch, config = turn.state, turn.batch, turn.config
    policy = state.policy
    debts = {debt.experience.decision_id: debt for debt in batch.owed}
    owed = {decision_id: debt.coefficient for decision_id, debt in debts.items()}
    corrections = corrections_of(
        batch,
        turn.max_tokens,
        policy.vocabulary_size,
        safe_ids=state.safe_ids,
        multiplier=state.multiplier,
    )
    pairs = anchored(policy, state.anchor, corrections, config)

    def weighed_of(scored: Sequence[Scored]) -> tuple[Weighed, Objective]:
        weighed = weigh(state, scored, owed, batch.activity, config)
        weighed = weighed.scaled(batch.fill, batch.breadth)
        given = (weighed.scored, weighed.advantage_b, weighed.weight_b, pairs)
        return weighed, Objective(*given, frozenset(owed), batch.practised, batch.fill)

    at_once = not needs_prox(usable, frozenset(owed), config)
    found = score(policy, state.anchor, usable, config.bucket_tokens, with_prox=not at_once)
    scored = agreed(found, turn.reasons, debts, config)
    weighed, objective = weighed_of(scored)
    if not at_once or not scored:
        return weighed, objective, None
    passed = add_passes(policy, objective, config)
    told = [replace(one, prox=passed.prox[place]) for place, one in enumerate(scored)]
    sound = agreed(told, turn.reasons, debts, config)
    if [*map(id, sound)] != [*map(id, told)]:
        put_back(state, before)
        return *weighed_of(sound), None
    return weighed, replace(objective, scored=tuple(told)), passed


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
