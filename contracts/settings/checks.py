"""What a type cannot say of settings: addresses, patterns, room, finite numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit

import msgspec

from contracts.errors import SettingsError
from contracts.settings.guard import check_guard
from contracts.settings.learner import Constraint
from contracts.settings.streams import (
    SIGNALS,
    SIGNALS_GROUP,
    Features,
    Streams,
)
from contracts.settings.tree import Settings, policies_of
from contracts.tool_calls import answer_in

_NO_ADDRESS = re.compile(r"[\s\x00-\x1f\x7f]")
_HOST_PORT = re.compile(r"(?:\[[\w:.%]+\]|[^\s\[\]:/@,]+):([0-9]{1,5})")


def check_settings(settings: Settings) -> None:
    """Raise SettingsError with the place, the value and what is allowed."""
    _check_finite(msgspec.to_builtins(settings, enc_hook=str), "$")
    for name in ("disallowed_topics", "topics"):
        for topic in getattr(settings.streams, name):
            _check_patterns(topic.patterns, f"streams.{name}", f" of topic {topic.name!r}")
    for name in ("refuse_patterns", "clarify_patterns"):
        _check_patterns(getattr(settings.gate.watch, name), f"gate.watch.{name}")
    _check_signals(settings.streams)
    _check_constraint(settings.learner.constraint)
    _check_safe_answer(settings.learner.constraint, settings.streams)
    check_guard(settings.guard)
    _check_gate(settings)
    _check_segments(settings)
    _check_room(settings)
    check_addresses(settings)


def check_addresses(settings: Settings) -> None:
    """Raise SettingsError when an address cannot be one; nobody is asked whether it answers."""
    for place, url in (
        ("engine.url", settings.engine.url),
        ("tracing.otlp_endpoint", settings.tracing.otlp_endpoint),
    ):
        if url and not _is_url(url):
            raise SettingsError(f"{url!r} - at `$.{place}`; give http://HOST:PORT")
    brokers = settings.kafka.bootstrap
    if brokers and not all(_is_host_port(each) for each in brokers.split(",")):
        raise SettingsError(
            f"{brokers!r} - at `$.kafka.bootstrap`; give HOST:PORT, several separated by commas"
        )
    if settings.features.online == "redis":
        servers = redis_servers(settings.features)
        if not servers or not all(_is_host_port(each) for each in servers):
            raise SettingsError(
                f"{','.join(servers)!r} - at `$.features.redis`; give HOST:PORT, "
                "then options as ,NAME=VALUE"
            )


def redis_servers(features: Features) -> list[str]:
    """Return the addresses in ``features.redis``, without its options."""
    return [part for part in features.redis.split(",") if "=" not in part]


def _check_finite(value: Any, place: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_finite(inner, f"{place}.{name}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check_finite(inner, f"{place}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{value} - at `{place}`; give a finite number")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        return False
    return sound and bool(parts.hostname) and not _NO_ADDRESS.search(text)


def _is_host_port(text: str) -> bool:
    """Whether it is one host, in brackets if it holds colons, and a port from 1 to 65535."""
    found = _HOST_PORT.fullmatch(text.strip())
    return found is not None and 1 <= int(found[1]) <= 65535


def _check_patterns(patterns: Sequence[str], place: str, whose: str = "") -> None:
    for pattern in patterns:
        try:
            re.compile(pattern, re.IGNORECASE)
        except (re.error, RecursionError, OverflowError) as error:
            raise SettingsError(
                f"{pattern!r}{whose} is no regular expression: {error} "
                f"- at `$.{place}`; write it in the syntax of Python's re"
            ) from error


def _check_signals(streams: Streams) -> None:
    """Every signal is built in, or brought by a package."""
    unknown = streams.reward.keys() - SIGNALS
    if unknown:
        unknown -= {point.name for point in entry_points(group=SIGNALS_GROUP)}
    if unknown:
        raise SettingsError(
            f"{min(unknown)!r} - at `$.streams.reward`; signals are "
            f"{', '.join(sorted(SIGNALS))}, and those of installed packages with an entry point "
            f"of the group {SIGNALS_GROUP}"
        )


def _check_constraint(constraint: Constraint) -> None:
    """A limit that false alarms alone exceed would only be met by a policy that says nothing."""
    if constraint.mode != "off" and constraint.aim <= constraint.false_alarms:
        raise SettingsError(
            f"{constraint.limit:g} - at `$.learner.constraint.limit`; the limit, without its "
            f"`margin` ({constraint.margin:g} of it), must lie above `false_alarms` "
            f"({constraint.false_alarms:g}): raise it, or set the mode to off"
        )
    if not constraint.least <= constraint.multiplier <= constraint.largest:
        raise SettingsError(
            f"{constraint.multiplier:g} - at `$.learner.constraint.multiplier`; give at least "
            f"`least` ({constraint.least:g}) and at most `largest` ({constraint.largest:g})"
        )


def _check_safe_answer(constraint: Constraint, streams: Streams) -> None:
    """On a disallowed topic all that is no safe action breaks the rule, kind words included, and so
    does any other call beside a safe one."""
    given = constraint.safe_answer
    if given and not given.strip():
        raise SettingsError(
            f"{given!r} - at `$.learner.constraint.safe_answer`; it would teach silence: give "
            "words or a tool call, or an empty text for none"
        )
    if not given or not streams.disallowed_topics:
        return
    called = {call.function.name for call in answer_in(given).tool_calls} or {"answer"}
    if not called.issubset(streams.safe_actions):
        raise SettingsError(
            f"{given!r} - at `$.learner.constraint.safe_answer`; on a disallowed topic that would "
            "break the rule again: call one of `$.streams.safe_actions` "
            f"({', '.join(streams.safe_actions)}), and nothing else, as in "
            '<tool_call>{"name": "escalate", "arguments": {}}</tool_call>'
        )


def _check_gate(settings: Settings) -> None:
    """What a version must show has to be possible, or none would ever be released."""
    gate, window = settings.gate, settings.streams.window_seconds
    if gate.mode != "enforce":
        return
    if gate.evaluation_samples < gate.min_samples:
        raise SettingsError(
            f"{gate.evaluation_samples} - at `$.gate.evaluation_samples`; the gate asks for "
            f"`min_samples` ({gate.min_samples}) judged answers, and no more are kept: give at "
            "least that many"
        )
    if not settings.policy.judge_share:
        raise SettingsError(
            "0 - at `$.policy.judge_share`; the gate's evidence comes from users who judge: give "
            "them a share, as 0.2, or set `$.gate.mode` to observe"
        )
    if window >= gate.max_age_seconds and not settings.streams.final_signals:
        raise SettingsError(
            f"{gate.max_age_seconds:g} - at `$.gate.max_age_seconds`; an answer has its reward "
            f"when `$.streams.window_seconds` ({window:g}) have passed, and is too old by then: "
            "give more than that"
        )


def _check_segments(settings: Settings) -> None:
    """What a segment gives its policy must not be given by others, or it would be left out."""
    known: dict[tuple[str, str], Any] = {}
    for number, segment in enumerate(settings.segments):
        for name in ("rollout", "reward_model"):
            if not (value := getattr(segment, name)):
                continue
            if segment.policy == settings.policy.name:
                raise SettingsError(
                    f"`$.segments[{number}].{name}` is of the general policy {segment.policy!r}: "
                    "give it outside of `$.segments`"
                )
            if known.setdefault((segment.policy, name), value) != value:
                raise SettingsError(
                    f"`$.segments[{number}].{name}` is another one than an earlier segment gives "
                    f"policy {segment.policy!r}: a policy has one, give it once"
                )


def _check_room(settings: Settings) -> None:
    """Every policy needs room for its stable version and its candidate, and one loads at a time.

    Full weights leave no room for a second policy.
    """
    names, given = policies_of(settings), settings.engine.max_adapters
    if given < (needed := 2 * len(names) + 1):
        raise SettingsError(
            f"{given} - at `$.engine.max_adapters`; the policies {', '.join(names)} "
            f"need room for {needed} adapters"
        )
    if settings.engine.full_weights and len(names) > 1:
        raise SettingsError(
            f"true - at `$.engine.full_weights`; full weights take the whole engine, which "
            f"{', '.join(names)} share; give false, or one policy and no `$.segments`"
        )
