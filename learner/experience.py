"""One learnable sample in the learner's own form: token ids, numbers and where it came from.

Slim on purpose: it is what the replay buffer and the checkpoint hold, so no message text is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct

from contracts.events import Sample
from contracts.settings import OF_THE_POLICY

USER_REWARD_MEAN = "user.reward_mean"
"""The feature that tells harsh and kind raters apart: an input of the baseline."""

SAFETY = "safety"
"""The signal that the monitor gives, and no person."""

TOOL = "tool"
"""The signal that says whether the tools called did their work, not whether that was of use."""

BASELINE = "baseline"
"""Stands for a model in ``imputed``: the reward is what the baseline expects, which teaches
nothing, so that the violation alone does."""

LEAST_TEMPERATURE = 1e-2
"""Below it sampling is greedy for all purposes; divided by less, logits leave float32."""

LEAST_LOGPROB, MOST_LOGPROB = -1e4, 1e-3
"""Log-probabilities outside, rounding allowed for, are no engine's, and answers without any."""


class Experience(Struct, frozen=True, kw_only=True):
    """A sample as the update uses it.

    ``logprobs`` (natural log, one per token of ``token_ids``) is empty when they are not usable.
    ``temperature`` is what logits are divided by: 1 for an answer that was drawn greedily, which
    has no probabilities of its own. ``max_tokens`` is the most that it could have, None: not known.
    ``behaviour_sequence`` is the release number of the version that served it, 0 for the base and
    for versions this learner did not make. ``correction_ids`` are the tokens of the answer wanted.
    ``user_reward_mean`` is what the gateway had for the decision; None when there was none, or what
    is no mean reward.
    Where the gateway did not log it (``features_logged``), it comes from the feature store as of
    ``decided_at``. ``tool_alone``: that a tool worked is all that speaks for the answer.
    ``unrated``: the monitor or the declared default gave the reward, for nobody said anything.
    ``censored``: nobody said anything, and ``reward`` says nothing unless it is ``imputed``, by the
    reward model of that version; with `BASELINE` it still says nothing.
    ``unusable`` is why its answer cannot be scored, as far as `learner.usable.trimmed` has found;
    ``uncorrected``: neither can what it was corrected to, which is left out.
    """

    sample_id: str
    decision_id: str
    offset: int
    session_id: str
    user_id: str
    behaviour_sequence: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    temperature: float
    reward: float
    decided_at: datetime
    feedback_time: datetime
    correction_ids: tuple[int, ...] = ()
    user_reward_mean: float | None = None
    features_logged: bool = False
    action: str = ""
    violation: bool = False
    tool_alone: bool = False
    unrated: bool = False
    censored: bool = False
    imputed: str = ""
    max_tokens: int | None = None
    unusable: str = ""
    uncorrected: bool = False


def experience_of(
    sample: Sample,
    *,
    offset: int = 0,
    sequences: Mapping[str, int] | None = None,
    correction_ids: tuple[int, ...] = (),
    appended: datetime | None = None,
) -> Experience:
    """Return the experience in a `Sample` event.

    ``sequences`` maps the ids of released versions to their release numbers; ``correction_ids``
    come from `learner.assistant_turn.correction_ids`. Nothing was decided or said after the sample
    was made, nor after the broker had ``appended`` it, whatever the clocks of other hosts say.
    """
    logged = sample.features.get(USER_REWARD_MEAN)
    greedy = 0.0 <= sample.temperature < LEAST_TEMPERATURE
    latest = min(sample.time, appended or sample.time)
    usable = len(sample.logprobs) == len(sample.token_ids) and not greedy
    usable = usable and all(LEAST_LOGPROB <= one <= MOST_LOGPROB for one in sample.logprobs)
    return Experience(
        sample_id=sample.id,
        decision_id=sample.decision_id,
        offset=offset,
        session_id=sample.session_id,
        user_id=sample.user_id,
        behaviour_sequence=(sequences or {}).get(sample.assignment.policy_version, 0),
        prompt_ids=sample.prompt_token_ids,
        token_ids=sample.token_ids,
        logprobs=sample.logprobs if usable else (),
        temperature=1.0 if greedy else sample.temperature,
        reward=sample.reward,
        decided_at=min(sample.decided_at, latest),
        feedback_time=min(sample.feedback_time, latest),
        correction_ids=correction_ids,
        user_reward_mean=known_mean(logged.value) if logged else None,
        features_logged=logged is not None,
        action=sample.action,
        violation=sample.violation,
        censored=sample.status == "censored",
        max_tokens=sample.max_tokens,
        tool_alone={name for name, part in sample.signals.items() if part > 0.0} == {TOOL},
        unrated=sample.status == "default"
        or (SAFETY in sample.signals and not sample.signals.keys() - OF_THE_POLICY),
    )


def known_mean(value: float | int | str | None) -> float | None:
    """Return a user's mean reward, None for what cannot be one: rewards are from -1 to 1.

    Clamped, a value that means something else would pass for a user who says nothing but good.
    """
    if not isinstance(value, int | float) or not -1.0 <= value <= 1.0:
        return None
    return float(value)
