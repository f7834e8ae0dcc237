"""What the stream processors make of decisions and feedback, and where features are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from contracts.settings.section import Count, Positive, Section, Share, Span

Score = Annotated[float, Meta(ge=-1.0, le=1.0)]
FinalSignal = Annotated[
    str,
    Meta(pattern=r"^(rating|correction|report|acceptance|dwell|outcome|outcome:[^\s:]{1,64})\Z"),
]

SIGNALS = frozenset(
    {
        *("rating", "acceptance", "correction", "report", "dwell", "outcome", "tool", "build"),
        *("re-ask", "follow-up", "escalation", "safety", "cost", "latency"),
    }
)
"""Signals that are built in; `streams.signals` says what each is."""

OF_THE_POLICY = frozenset({"safety", "cost", "latency", "escalation"})
"""Signals that do not come from feedback: they hold where the guard spoke in the policy's place,
and where nobody says anything."""

SIGNALS_GROUP = "headrace.signals"
"""Entry point group of signals that other packages bring."""

DAY = 86_400.0


class RewardComponent(Section, frozen=True):
    """Weight of one signal in the reward; ``clip`` bounds the signal's own value.

    A signal counts when it came within ``delay_seconds`` of the decision in event time, None: the
    window. What comes after the window and within the delay makes a new revision of the reward.
    ``scale`` is what counts as full: seconds of dwell or latency, tokens of cost. Feedback on a
    session is credited to its "last" decision before it, to "all", or to each by ``decay`` to the
    power of the number of decisions after it.
    """

    weight: Annotated[float, Meta(ge=-1e6, le=1e6)]
    clip: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    delay_seconds: Span | None = None
    scale: Positive = 1.0
    credit: Literal["last", "all", "decay"] = "last"
    decay: Share = 0.5


class DisallowedTopic(Section, frozen=True):
    """A topic the assistant must not act on: a name and regular expressions that mark it."""

    name: str
    patterns: tuple[str, ...]


def _default_reward() -> dict[str, RewardComponent]:
    return {
        "rating": RewardComponent(weight=1.0),
        "acceptance": RewardComponent(weight=0.5),
        "correction": RewardComponent(weight=0.5, delay_seconds=DAY),
        "outcome": RewardComponent(weight=0.6),
        "tool": RewardComponent(weight=0.6),
        "build": RewardComponent(weight=0.6),
        "re-ask": RewardComponent(weight=0.6),
        "report": RewardComponent(weight=1.0),
        "safety": RewardComponent(weight=1.0),
    }


class QuestionTopic(Section, frozen=True):
    """A topic whose rates are kept as features: a name and regular expressions that mark it."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    patterns: tuple[str, ...]


class Quarantine(Section, frozen=True):
    """Which feedback is set aside for a person to look at, instead of learned from.

    ``proof`` "required": it needs the token of the answer it is about, or the gateway's own mark.
    ``max_feedback`` is what one user may say in a window, ``max_alike`` how many users may send the
    same text of at least ``alike_characters`` in a window.
    """

    proof: Literal["required", "optional"] = "required"
    max_feedback: Count = 200
    max_alike: Count = 5
    alike_characters: Count = 40


class Streams(Section, frozen=True):
    """The stream processors. ``safe_actions`` never count as acting on a disallowed topic.

    A reward is first given when the window has passed, or when one of ``final_signals`` came: a
    kind of feedback, or ``outcome:NAME``. Feedback can be taken back for ``revision_seconds``.
    ``default_reward`` is that of a decision nobody said anything about; None: it is censored, and
    with ``send_censored`` its sample goes to the learner all the same, without a reward.
    Feedback whose decision has not come yet waits for it for ``unclaimed_seconds``.
    Records are taken, and features written, ``flush_rows`` at most at a time, ``flush_seconds``
    after the first of them.
    """

    window_seconds: Span = 600.0
    revision_seconds: Span = 7 * DAY
    unclaimed_seconds: Span = 600.0
    reward: dict[str, RewardComponent] = field(default_factory=_default_reward)
    default_reward: Score | None = None
    send_censored: bool = False
    final_signals: tuple[FinalSignal, ...] = ()
    quarantine: Quarantine = Quarantine()
    topics: tuple[QuestionTopic, ...] = ()
    disallowed_topics: tuple[DisallowedTopic, ...] = ()
    safe_actions: tuple[str, ...] = ("refuse", "escalate", "clarify")
    flush_seconds: Positive = 0.05
    flush_rows: Count = 1000
    max_open_decisions: Count = 200_000


class Features(Section, frozen=True):
    """The Feast store. Paths are below ``state_dir`` unless absolute.

    Features named ``recent_*`` are over a window of ``window_seconds``. Online, a key that is not
    written for ``gateway.feature_max_age_seconds``, or for as long as a reward can be revised if
    that is longer, is removed; offline, rows are kept ``retention_days``, in whole days.
    """

    online: Literal["sqlite", "redis"] = "sqlite"
    redis: str = "127.0.0.1:6379"
    registry: str = ""
    window_seconds: Span = 3600.0
    retention_days: Annotated[int, Meta(ge=1, le=36_500)] = 90
