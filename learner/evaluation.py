"""Evidence on the present weights: what judges' logged answers say of them, and how far they moved.

A function of the weights, those of the parent and of the version in service, the progress (its
judged answers, and what taught of late), the settings and the reward model: made twice, it is the
same to the last bit.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray
from safetensors.torch import load_file

from contracts.errors import ManifestError
from contracts.events import BASE_VERSION
from contracts.evidence import Level, OffPolicy, ReleaseEvidence, SliceEvidence
from contracts.manifest import verify
from contracts.settings import Settings
from learner import off_policy
from learner.adapters import ADAPTER_WEIGHTS
from learner.anchor import in_service, other_adapters
from learner.direct_method import foretell, predict
from learner.directory import versions_directory
from learner.experience import Experience
from learner.first_decision import Decisions, decisions_of, probabilities, taken
from learner.off_policy import Floats, LoggedAnswers, Resampled
from learner.policy import Policy
from learner.progress import Progress
from learner.refusals import Evasion, evasions
from learner.reward_model import PASS_TOKENS, RewardModel
from learner.scoring import sequence_of
from learner.usable import unusable
from learner.watch import Reweighted, steps, trends, unwatched_steps
from learner.watch_figures import Watched

LEAST_SAMPLES = 8
"""With fewer answers, or a single user, nothing is estimated."""

INCUMBENT_GONE = "the weights of the version in service were gone"

_KL_CAP = 5.0
_logger = logging.getLogger("learner")


class _Scored(Struct, frozen=True):
    """One policy on the judged answers: log-probability of each token, probability of each
    decision and of the safe answer."""

    logprobs: list[list[float]]
    decisions_nk: Floats
    safe_n: Floats


class _Question(Struct, frozen=True):
    """What each policy is asked about the judged answers: which decisions there are, and the safe
    answer, with the room for it and its prompt."""

    usable: Sequence[Experience]
    decisions: Decisions
    safe_ids: tuple[int, ...]
    room: int


def release_evidence(
    policy: Policy,
    progress: Progress,
    settings: Settings,
    reward_model: RewardModel | None = None,
) -> ReleaseEvidence:
    """Return the evidence on the weights that ``policy`` has now, as of the progress.

    What a reward model says is one more feature of the prediction in the doubly robust estimates.
    """
    known = [e for e in progress.evaluation if _is_usable(e, policy, settings)]
    watch = settings.gate.watch
    watched = (*watch.refuse_actions, *watch.clarify_actions)  # seen before anybody did them
    decisions = decisions_of(policy.tokenizer, [*(e.action for e in known), *watched])
    room = settings.engine.max_model_len - len(decisions.opening) - 1
    usable = [e for e in known if len(e.prompt_ids) <= room]  # else no call could be begun
    names = progress.names
    served = Counter(names.get(e.behaviour_sequence, BASE_VERSION) for e in usable)
    users = {e.user_id for e in usable}
    found = ReleaseEvidence(
        policy=progress.policy,
        sequence=progress.sequence,
        parent=progress.parent,
        as_of=max((e.decided_at for e in usable), default=None),
        samples=len(usable),
        users=len(users),
        versions=dict(sorted(served.items())),
        kl_to_parent=None,
        logged_reward=_mean([e.reward for e in usable]),
        logged_cost=_mean([float(e.violation) for e in usable]),
        levels={},
        slices=(),
        reward_model="" if reward_model is None else reward_model.version,
    )
    if len(usable) < LEAST_SAMPLES or len(users) < off_policy.FOLDS:
        return found
    return _estimated(found, policy, progress, settings, usable, decisions, reward_model)


def _estimated(
    found: ReleaseEvidence,
    policy: Policy,
    progress: Progress,
    settings: Settings,
    usable: Sequence[Experience],
    decisions: Decisions,
    reward_model: RewardModel | None,
) -> ReleaseEvidence:
    refuse, clarify = evasions(policy, settings, [*usable, *progress.replay.recent])
    asked = _Question(usable, decisions, refuse.safe_ids, settings.engine.max_model_len)
    candidate = _score(policy, asked)
    parent = _scored_by(progress.parent, policy, asked, settings)
    incumbent = _incumbent_of(progress)
    served = (
        parent if incumbent == progress.parent else _scored_by(incumbent, policy, asked, settings)
    )
    slices_n = np.argmax((parent or candidate).decisions_nk, axis=1)
    resampled = off_policy.resample_users([e.user_id for e in usable], settings.learner.seed)
    foretold = foretell(policy, usable, settings, reward_model) if reward_model else None
    predictions = predict(usable, decisions, candidate.decisions_nk, slices_n, foretold)
    weighed = _weighed(usable, candidate, decisions)
    logs: dict[Level, LoggedAnswers] = {
        "answer": _log(usable, weighed.whole_n, predictions),
        "first-decision": _log(usable, weighed.first_n, predictions),
    }
    seen = (
        unwatched_steps(INCUMBENT_GONE, (refuse, clarify))
        if served is None
        else steps(
            usable,
            decisions,
            _weighed(usable, served, decisions),
            weighed,
            resampled,
            (refuse, clarify),
        ),
        _trends(usable, progress, settings, reward_model, (refuse, clarify)),
    )
    return replace(
        found,
        kl_to_parent=None if parent is None else _divergence(usable, parent, candidate),
        levels={level: _off_policy(log, resampled) for level, log in logs.items()},
        slices=_slices(logs[settings.gate.level], resampled, slices_n, decisions),
        watch=tuple(figure for each in seen for figure in each.figures),
        unwatched=tuple(missing for each in seen for missing in each.unwatched),
    )


def _is_usable(experience: Experience, policy: Policy, settings: Settings) -> bool:
    """Whether the answer has probabilities to weigh by: of the engine, drawn by chance, finite."""
    length, vocabulary = settings.engine.max_model_len, policy.vocabulary_size
    known = unusable(experience, length, vocabulary) is None
    return known and bool(experience.logprobs) and bool(np.isfinite(experience.logprobs).all())


def _score(policy: Policy, asked: _Question, *, adapted: bool = True) -> _Scored:
    answers = [sequence_of(e) for e in asked.usable]
    return _Scored(
        policy.logprobs(answers, PASS_TOKENS, adapted=adapted),
        probabilities(policy, asked.decisions, answers, PASS_TOKENS, adapted=adapted),
        _safe(policy, asked, adapted=adapted),
    )


def _safe(policy: Policy, asked: _Question, *, adapted: bool) -> Floats:
    """Return how likely the safe answer is to each question, 0 where it has no room."""
    found_n = np.zeros(len(asked.usable))
    most = asked.room - len(asked.safe_ids)
    fits = [n for n, e in enumerate(asked.usable) if asked.safe_ids and len(e.prompt_ids) <= most]
    if fits:
        told = [replace(sequence_of(asked.usable[n]), response_ids=asked.safe_ids) for n in fits]
        rows = policy.logprobs(told, PASS_TOKENS, adapted=adapted)
        found_n[fits] = np.exp([sum(row) for row in rows])
    return found_n


def _incumbent_of(progress: Progress) -> str:
    """Return the version that nearly all users have, as far as the newest answers tell."""
    return progress.names.get(in_service(progress.served), BASE_VERSION)


def _scored_by(
    version: str, policy: Policy, asked: _Question, settings: Settings
) -> _Scored | None:
    """Return what a version gives to the same answers; None when its weights are gone or torn."""
    if version == BASE_VERSION:
        return _score(policy, asked, adapted=False)
    directory = versions_directory(settings) / version
    try:
        verify(directory, version)
    except ManifestError as error:
        _logger.warning("no comparison with version %s: %s", version[:12], error)
        return None
    with other_adapters(policy, load_file(directory / ADAPTER_WEIGHTS)):
        return _score(policy, asked)


def _divergence(usable: Sequence[Experience], parent: _Scored, candidate: _Scored) -> float:
    """Return KL(parent ‖ candidate) per answer, at the places the logging policies came to.

    Per token p/mu·(log p/q + q/p − 1), never negative and of mean KL (Schulman, "Approximating KL
    divergence", 2020); p is the parent, q the candidate, and the weight p/mu is cut at 5.
    """
    total = 0.0
    for experience, p, q in zip(usable, parent.logprobs, candidate.logprobs, strict=True):
        p_t, q_t, mu_t = np.array(p), np.array(q), np.array(experience.logprobs)
        weight_t = np.exp(np.minimum(p_t - mu_t, np.log(_KL_CAP)))
        ratio_t = np.clip(q_t - p_t, -off_policy.LARGEST_LOG_WEIGHT, off_policy.LARGEST_LOG_WEIGHT)
        total += float((weight_t * (np.exp(ratio_t) - 1.0 - ratio_t)).sum())
    return total / len(usable)


def _trends(
    usable: Sequence[Experience],
    progress: Progress,
    settings: Settings,
    reward_model: RewardModel | None,
    evasions: Sequence[Evasion],
) -> Watched:
    said = reward_model.score([sequence_of(e) for e in usable]) if reward_model else None
    foretold_n = None if said is None else np.array([expected.mean for expected in said])
    taught = progress.replay.recent
    return trends(usable, taught, evasions, settings.learner.seed, foretold_n, progress.names)


def _weighed(usable: Sequence[Experience], scored: _Scored, decisions: Decisions) -> Reweighted:
    firsts = [taken(decisions, e.token_ids).tokens for e in usable]
    return Reweighted(
        decisions_nk=scored.decisions_nk,
        safe_n=scored.safe_n,
        first_n=_weights(usable, scored, firsts),
        whole_n=_weights(usable, scored, [len(e.token_ids) for e in usable]),
    )


def _weights(usable: Sequence[Experience], scored: _Scored, ends: Sequence[int]) -> Floats:
    """Return pi/mu of each answer up to the token where it ends."""
    now_n = np.array([sum(row[:end]) for row, end in zip(scored.logprobs, ends, strict=True)])
    then_n = np.array([sum(e.logprobs[:end]) for e, end in zip(usable, ends, strict=True)])
    return off_policy.importance_weights(now_n, then_n)


def _log(
    usable: Sequence[Experience], weights_n: Floats, predictions: tuple[Floats, Floats]
) -> LoggedAnswers:
    return LoggedAnswers(
        weights_n=weights_n,
        rewards_n=np.array([e.reward for e in usable]),
        costs_n=np.array([float(e.violation) for e in usable]),
        users=tuple(e.user_id for e in usable),
        predicted_n=predictions[0],
        expected_n=predictions[1],
    )


def _off_policy(log: LoggedAnswers, resampled: Resampled) -> OffPolicy:
    return OffPolicy(
        support=off_policy.support(log.weights_n, log.users),
        ips=off_policy.ips_interval(log, resampled),
        snips=off_policy.snips_interval(log, resampled),
        capped=off_policy.capped(log),
        doubly_robust=off_policy.doubly_robust_interval(log, resampled),
        difference=off_policy.difference_interval(log, resampled),
        cost=off_policy.cost_interval(log, resampled),
        value_lower_bound=off_policy.value_lower_bound(log, resampled),
        cost_upper_bound=off_policy.cost_upper_bound(log, resampled),
    )


def _slices(
    log: LoggedAnswers,
    resampled: Resampled,
    slices_n: NDArray[np.int64],
    decisions: Decisions,
) -> tuple[SliceEvidence, ...]:
    found = []
    for place, name in enumerate(decisions.names):
        inside_n = slices_n == place
        part = off_policy.part(log, inside_n)
        if len(set(part.users)) < off_policy.FOLDS:
            continue
        difference = off_policy.difference_interval(
            part, Resampled(counts_bn=resampled.counts_bn[:, inside_n])
        )
        found.append(
            SliceEvidence(
                name=name,
                samples=len(part.users),
                difference=difference.value,
                error=difference.error,
                cost=float((part.weights_n * part.costs_n).sum() / part.weights_n.sum()),
            )
        )
    return tuple(found)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
