"""The signals that a reward is made of: one small function each, all of one signature.

A function is given the `Evidence` on a decision and its own settings, and returns a `Signal`, or
None when there is nothing to go by. A package adds its own by an entry point of the group
``headrace.signals`` whose name is the signal's; the settings then give it a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from math import isfinite
from statistics import fmean

from msgspec import Struct

from contracts.errors import SettingsError
from contracts.events import Feedback, Message, text_of
from contracts.settings import SIGNALS_GROUP, RewardComponent
from streams.evidence import Evidence
from streams.safety import chosen_action
from streams.similarity import share_in_order, similarity

SAME_QUESTION = 0.6
"""Share of words kept in order from which a question counts as the one before, asked again."""

MAX_WORDS = 200
"""Words of a question that are compared."""

MAX_RULE, MAX_EVENTS, MAX_ID = 256, 256, 128
"""Characters of a rule, events behind a signal, characters of their ids: a reward that says more of
each of its signals could become too large for the log."""

ESCALATE = "escalate"
"""Action, and by convention the tool, that hands a question over to a person."""

BUILDS, TOOLS, RE_ASKS = frozenset({"build", "test"}), frozenset({"tool"}), frozenset({"re-ask"})
"""Names of outcomes that have a signal of their own; ``NAME/detail`` counts as ``NAME``."""


class Signal(Struct, frozen=True):
    """``value`` in [-1, 1], the rule (or model and version) that gave it, the events behind it."""

    value: float
    rule: str
    event_ids: tuple[str, ...] = ()


SignalFunction = Callable[[Evidence, RewardComponent], Signal | None]


def rating(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return the newest score: one vote, not many."""
    return _newest_score(evidence.of(component, "rating"), "rating: newest score")


def acceptance(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return whether the answer was taken as it was."""
    return _newest_score(evidence.of(component, "acceptance"), "acceptance: newest score")


def correction(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return how much of the answer the newest correction kept, from -1 (nothing) to 1 (all)."""
    for event, _ in reversed(evidence.of(component, "correction")):
        if event.correction is not None:
            kept = similarity(evidence.decision.answer, event.correction)
            return Signal(2 * kept - 1, "correction: 2 * share kept - 1", (event.id,))
    return None


def outcome(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return the mean outcome, but for those with a signal of their own."""
    others = BUILDS | TOOLS | RE_ASKS
    events = [pair for pair in evidence.of(component, "outcome") if _name(pair[0]) not in others]
    return _mean_outcome(events, "outcome: mean of newest score per name")


def tool(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return whether the tools that were called did their work."""
    events = [pair for pair in evidence.of(component, "outcome") if _name(pair[0]) in TOOLS]
    return _mean_outcome(events, "tool: mean of newest score per name")


def build(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return whether builds and tests passed."""
    events = [pair for pair in evidence.of(component, "outcome") if _name(pair[0]) in BUILDS]
    return _mean_outcome(events, "build: mean of newest score per name")


def re_ask(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return -1 when the same question came again, as told by an outcome or seen in the session."""
    told = [pair for pair in evidence.of(component, "outcome") if _name(pair[0]) in RE_ASKS]
    if told:
        return _mean_outcome(told, "re-ask: newest score told")
    following = evidence.followed_by(component)
    if following is None or not _asks_again(evidence, component):
        return None
    return Signal(
        -1.0, f"re-ask: next question keeps {SAME_QUESTION} of the words", (following.id,)
    )


def follow_up(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return 1 when the person went on in the session with another question."""
    following = evidence.followed_by(component)
    if following is None or _asks_again(evidence, component):
        return None
    return Signal(1.0, "follow-up: another question came next", (following.id,))


def report(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return -1 when the answer was reported."""
    events = evidence.of(component, "report")
    if not events:
        return None
    share = max(share for _, share in events)
    return Signal(-share, "report: -1 when reported", tuple(event.id for event, _ in events))


def dwell(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return the time spent with the answer, against ``scale`` seconds: 1 from there on."""
    events = evidence.of(component, "dwell")
    if not events:
        return None
    seconds = sum(event.seconds or 0.0 for event, _ in events)
    ids = tuple(event.id for event, _ in events)
    return Signal(min(1.0, seconds / component.scale), "dwell: seconds / scale", ids)


def escalation(evidence: Evidence, _: RewardComponent) -> Signal | None:
    """Return -1 when the policy handed the question over to a person."""
    if chosen_action(evidence.decision) != ESCALATE:
        return None
    return Signal(-1.0, "escalation: -1 when escalated", (evidence.decision.id,))


def safety(evidence: Evidence, _: RewardComponent) -> Signal | None:
    """Return -1 on a violation."""
    if not evidence.safety.violation:
        return None
    return Signal(-1.0, "safety: -1 on violation", (evidence.safety.id,))


def cost(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return minus the tokens read and written, against ``scale`` tokens: -1 from there on."""
    tokens = len(evidence.decision.prompt_token_ids) + len(evidence.decision.token_ids)
    return Signal(-min(1.0, tokens / component.scale), "cost: -tokens / scale", ())


def latency(evidence: Evidence, component: RewardComponent) -> Signal | None:
    """Return minus the time until the answer was there, against ``scale`` seconds."""
    seconds = evidence.decision.timings.total_seconds
    return Signal(-min(1.0, seconds / component.scale), "latency: -seconds / scale", ())


BUILT_IN: Mapping[str, SignalFunction] = {
    "rating": rating,
    "acceptance": acceptance,
    "correction": correction,
    "outcome": outcome,
    "tool": tool,
    "build": build,
    "re-ask": re_ask,
    "follow-up": follow_up,
    "report": report,
    "dwell": dwell,
    "escalation": escalation,
    "safety": safety,
    "cost": cost,
    "latency": latency,
}

ACCOMPANYING = frozenset({"cost", "latency", "escalation"})
"""Signals that every decision could have: they refine a reward, and are none by themselves."""


def load_signals(names: Iterable[str]) -> dict[str, SignalFunction]:
    """Return the functions of these signals; SettingsError for one that does not load."""
    wanted = list(names)
    plugins = {}
    if not BUILT_IN.keys() >= set(wanted):
        plugins = {point.name: point for point in entry_points(group=SIGNALS_GROUP)}
    found = {}
    for name in wanted:
        if name in BUILT_IN:
            found[name] = BUILT_IN[name]
        elif name in plugins:
            found[name] = _loaded(plugins[name])
        else:
            known = ", ".join(sorted({*BUILT_IN, *plugins}))
            raise SettingsError(
                f"{name!r} - at `$.streams.reward`; known signals are {known}: install the "
                f"package that has it as an entry point of the group {SIGNALS_GROUP}"
            )
    return found


def checked(name: str, signal: Signal) -> Signal:
    """Return what a function gave, as readers of the log can take it; ValueError where they cannot.

    A function of another package may give anything.
    """
    value, ids = float(signal.value), tuple(signal.event_ids)
    if not isfinite(value):  # no bound would hold it: clipped, NaN is the highest there is
        raise ValueError(f"signal {name!r} gave {value}; allowed: -1 to 1")
    if not isinstance(signal.rule, str) or len(signal.rule) > MAX_RULE:
        raise ValueError(
            f"signal {name!r} names no rule; give a text of {MAX_RULE} characters at most"
        )
    if len(ids) > MAX_EVENTS or not all(isinstance(i, str) and len(i) <= MAX_ID for i in ids):
        raise ValueError(f"signal {name!r} names no events; give {MAX_EVENTS} ids at most")
    return Signal(value, signal.rule, ids)


def _loaded(point: EntryPoint) -> SignalFunction:
    try:
        function: SignalFunction = point.load()
    except Exception as error:
        raise SettingsError(
            f"{point.name!r} - at `$.streams.reward`; {point.value} does not load: {error!r}"
        ) from error
    if not callable(function):
        raise SettingsError(f"{point.name!r} - at `$.streams.reward`; {point.value} is no function")
    return function


def _newest_score(events: list[tuple[Feedback, float]], rule: str) -> Signal | None:
    if not events:
        return None
    event, share = events[-1]
    return Signal((event.score or 0.0) * share, rule, (event.id,))


def _mean_outcome(events: list[tuple[Feedback, float]], rule: str) -> Signal | None:
    newest = {event.name: (event, share) for event, share in events}
    if not newest:
        return None
    value = fmean((event.score or 0.0) * share for event, share in newest.values())
    return Signal(value, rule, tuple(event.id for event, _ in newest.values()))


def _name(event: Feedback) -> str:
    return (event.name or "").partition("/")[0]


def _asks_again(evidence: Evidence, component: RewardComponent) -> bool:
    following = evidence.followed_by(component)
    if following is None:
        return False
    asked, then = _question(evidence.decision.messages), _question(following.messages)
    return bool(asked) and share_in_order(asked, then) >= SAME_QUESTION


def _question(messages: tuple[Message, ...]) -> list[str]:
    """Return the words of the last thing the user said."""
    asked = (message for message in reversed(messages) if message.role == "user")
    found = next(asked, None)
    return text_of(found).lower().split()[:MAX_WORDS] if found else []
