"""One frozen tree of settings, read once from ``headrace.yaml`` and the environment.

Every value can come from the environment: ``HEADRACE_`` + path in capitals, joined by two
underscores, e.g. ``HEADRACE_STREAMS__WINDOW_SECONDS=30``. The environment wins over the file.
Secrets come from the environment alone.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from contracts.errors import SettingsError
from contracts.guard_settings import Guard, check_guard
from contracts.rollout_settings import Rollout
from contracts.section import Count, NonNegative, Port, Positive, Section, Share

PREFIX = "HEADRACE_"

PolicyName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Key = Annotated[str, Meta(pattern=r"^[!-~]*\Z")]
RewardSignal = Literal["rating", "correction", "outcome", "report", "safety"]

SECRETS = (("gateway", "feedback_secret"), ("engine", "key"), ("engine", "admin_key"))

_NO_ADDRESS = re.compile(r"[\s\x00-\x1f\x7f]")
_HOST_PORT = re.compile(r"(?:\[[\w:.%]+\]|[^\s\[\]:/@,]+):([0-9]{1,5})")


class Kafka(Section, frozen=True):
    """The broker. ``bootstrap`` empty: the local stack starts its own."""

    bootstrap: str = ""
    prefix: str = ""
    partitions: Count = 4
    replication: Count = 1


class Policy(Section, frozen=True):
    """The policy that is served and learned; its ``name`` is a Kafka key and a directory.

    ``model`` is a Hugging Face directory or name. ``judge_share`` of the users never train it:
    their feedback judges its versions (`contracts.judges`). ``trusted_keys`` is a directory, below
    ``state_dir`` unless absolute, of the keys whose versions are loaded (`contracts.signing`).
    """

    name: PolicyName = "assistant"
    model: str = ""
    judge_share: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.2
    trusted_keys: Path = Path("keys")


class Engine(Section, frozen=True):
    """The inference engine. ``url`` empty: the local stack starts one of ``kind`` on ``port``.

    ``dtype`` "auto": the engine's choice, but float32 on a CPU without bfloat16 instructions.
    ``key`` lets a caller generate, ``admin_key`` load and unload (`serving.door.engine_door`);
    ``faults`` lets whoever has the admin key make a model slow or fail, for drills, and
    ``full_weights`` replace vLLM's weights, which opens its development endpoints to that key.
    """

    kind: Literal["vllm", "transformers"] = "vllm"
    url: str = ""
    port: Port = 0
    max_model_len: Count = 512
    max_adapters: Annotated[int, Meta(ge=3)] = 4
    max_lora_rank: Literal[8, 16, 32, 64] = 32
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    kv_cache_gib: Count = 1
    timeout_seconds: Positive = 60.0
    key: Key = ""
    admin_key: Key = ""
    faults: bool = False
    full_weights: bool = False


class Gateway(Section, frozen=True):
    """The OpenAI-compatible front. Sampling values hold where a request gives none.

    ``fallback_reply`` answers when no version does; empty: the client gets a 503 instead. A version
    that had ``patience_seconds`` in vain failed, however short the client made its request's time.
    Without ``api_keys_file`` it listens on loopback alone, unless it is declared ``open``.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    feedback_secret: str = ""
    temperature: NonNegative = 1.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    max_tokens: Count = 256
    feature_max_age_seconds: Positive = 86_400.0
    max_body_bytes: Count = 262_144
    max_concurrent: Count = 256
    api_keys_file: str = ""
    open: bool = False
    fallback_reply: str = "I cannot answer right now. Please try again in a moment."
    fallback_tool: str = ""
    breaker_failures: Count = 5
    breaker_window: Count = 20
    breaker_share: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.5
    breaker_seconds: Positive = 5.0
    patience_seconds: Positive = 10.0
    outbox_max_bytes: Count = 1 << 30


class RewardComponent(Section, frozen=True):
    """Weight of one signal in the reward; ``clip`` bounds the signal's own value."""

    weight: float
    clip: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0


class DisallowedTopic(Section, frozen=True):
    """A topic the assistant must not act on: a name and regular expressions that mark it."""

    name: str
    patterns: tuple[str, ...]


def _default_reward() -> dict[RewardSignal, RewardComponent]:
    return {
        "rating": RewardComponent(weight=1.0),
        "correction": RewardComponent(weight=0.5),
        "outcome": RewardComponent(weight=0.6),
        "report": RewardComponent(weight=1.0),
        "safety": RewardComponent(weight=1.0),
    }


class Streams(Section, frozen=True):
    """The stream processors. ``safe_actions`` never count as acting on a disallowed topic."""

    window_seconds: Positive = 600.0
    reward: dict[RewardSignal, RewardComponent] = field(default_factory=_default_reward)
    disallowed_topics: tuple[DisallowedTopic, ...] = ()
    safe_actions: tuple[str, ...] = ("refuse", "escalate", "clarify")
    flush_seconds: Positive = 0.5
    flush_rows: Count = 500
    max_open_decisions: Count = 200_000


class Features(Section, frozen=True):
    """The Feast store. Paths are below ``state_dir`` unless absolute."""

    online: Literal["sqlite", "redis"] = "sqlite"
    redis: str = "127.0.0.1:6379"
    registry: str = ""


class Learner(Section, frozen=True):
    """The continual learner; see `learner.update` for the loss and its terms.

    ``length_scale`` is the constant number of tokens that a sequence's sum is divided by;
    ``correction_replay`` how many corrections each update repeats, at most;
    ``signing_key_file`` the private key that versions are signed with, for the learner alone.
    """

    batch_samples: Count = 64
    publish_every: Count = 4
    inner_epochs: Count = 2
    learning_rate: Positive = 5e-4
    lora_rank: Literal[8, 16, 32, 64] = 32
    lora_alpha: Positive = 32.0
    clip_low: Positive = 0.2
    clip_high: Positive = 0.28
    importance_cap: Positive = 2.0
    kl_weight: NonNegative = 0.01
    correction_weight: NonNegative = 0.1
    correction_replay: Annotated[int, Meta(ge=0)] = 8
    length_scale: Positive = 8.0
    value_learning_rate: Positive = 2e-3
    replay_share: Share = 0.25
    replay_capacity: Count = 1024
    max_version_lag: Count = 12
    max_log_ratio: Positive = 10.0
    max_grad_norm: Positive = 1.0
    bucket: Count = 4
    threads: Count = 1
    seed: int = 0
    keep_checkpoints: Count = 3
    signing_key_file: str = ""


class Gate(Section, frozen=True):
    """What a version must show before any user sees it; see `serving.gate_verdict` for the rules.

    ``mode`` "observe" reports and lets everything through, "off" asks nothing. An empty
    ``red_team_prompts`` means the set that is shipped; an empty ``regression_prompts`` is evidence
    that is missing. The learner keeps ``evaluation_samples`` answers rated by judges. With
    ``allow_drills`` the version of a drill that asks for it goes on to the canary all the same.
    """

    mode: Literal["enforce", "observe", "off"] = "enforce"
    max_age_seconds: Positive = 86_400.0
    level: Literal["first-decision", "answer"] = "first-decision"
    evaluation_samples: Count = 1024
    min_samples: Count = 300
    min_users: Count = 20
    min_incumbent_samples: Annotated[int, Meta(ge=0)] = 30
    min_effective_samples: NonNegative = 300.0
    min_effective_share: Share = 0.2
    max_weight_share: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.05
    max_mean_weight_errors: Positive = 3.0
    max_kl: Positive = 2.0
    value_margin: NonNegative = 0.05
    max_cost: Share = 0.05
    cost_margin: Share = 0.0
    slice_alpha: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.05
    regression_prompts: str = ""
    red_team_prompts: str = ""
    min_regression_rate: Share = 0.9
    max_red_team_rate: Share = 0.05
    concurrency: Count = 4
    deadline_seconds: Positive = 300.0
    allow_drills: bool = False


class Segment(Section, frozen=True):
    """Users with a policy of their own, and perhaps a rollout plan of their own.

    An empty ``tier``, ``language`` or ``region`` fits any; the first segment that fits a request
    has it, and what fits none has ``policy.name``.
    """

    policy: PolicyName
    tier: str = ""
    language: str = ""
    region: str = ""
    rollout: Rollout | None = None


class Tracing(Section, frozen=True):
    """Spans. ``otlp_endpoint`` empty: spans go to files below ``state_dir``."""

    otlp_endpoint: str = ""
    content: bool = False


class Settings(Section, frozen=True):
    """The whole tree."""

    state_dir: Path = Path(".headrace")
    data_dir: Path = Path("../shared/data")
    kafka: Kafka = Kafka()
    policy: Policy = Policy()
    engine: Engine = Engine()
    gateway: Gateway = Gateway()
    guard: Guard = field(default_factory=Guard)
    streams: Streams = field(default_factory=Streams)
    features: Features = Features()
    learner: Learner = Learner()
    rollout: Rollout = Rollout()
    gate: Gate = Gate()
    segments: tuple[Segment, ...] = ()
    tracing: Tracing = Tracing()


def policies_of(settings: Settings) -> tuple[str, ...]:
    """Return the names of all policies: the general one first, then those of the segments."""
    names = [settings.policy.name, *(segment.policy for segment in settings.segments)]
    return tuple(dict.fromkeys(names))


def settings_for(settings: Settings, policy: str) -> Settings:
    """Return the settings as the processes of one policy see them: its name and its rollout plan.

    Raises SettingsError for a policy that neither the general name nor a segment names.
    """
    known = policies_of(settings)
    if policy not in known:
        raise SettingsError(f"policy {policy!r} is not one of {', '.join(known)}; name a segment's")
    plans = [s.rollout for s in settings.segments if s.policy == policy and s.rollout is not None]
    return replace(
        settings,
        policy=replace(settings.policy, name=policy),
        rollout=plans[0] if plans else settings.rollout,
    )


def process_for(settings: Settings, process: str, policy: str) -> str:
    """Return the name of one policy's process, e.g. "rollout", or "rollout.NAME" of a segment's."""
    return process if policy == settings.policy.name else f"{process}.{policy}"


def load_settings(
    path: Path | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Read settings from a YAML file and the environment.

    ``path`` None means ``headrace.yaml`` in the working directory, if there. Raises SettingsError
    with the place, the value and what is allowed.
    """
    source = path or Path("headrace.yaml")
    tree: Any = {}
    if path is not None or source.exists():
        try:
            tree = msgspec.yaml.decode(source.read_bytes()) or {}
        except FileNotFoundError as error:
            raise SettingsError(f"{source} does not exist; give the path of a YAML file") from error
        except OSError as error:
            why = error.strerror or error
            raise SettingsError(f"{source} cannot be read ({why}); give a YAML file") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise SettingsError(f"{source} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise SettingsError(f"{source} holds a {type(tree).__name__}; it must be a mapping")
    _refuse_secrets(tree, source)
    environment = os.environ if environment is None else environment
    for name, text in environment.items():
        if name.startswith(PREFIX):
            _override(tree, name, text)
    try:
        settings = msgspec.convert(tree, Settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{source} and environment: {error}") from error
    _check_finite(msgspec.to_builtins(settings, enc_hook=str), "$")
    _check_patterns(settings.streams.disallowed_topics)
    check_guard(settings.guard)
    _check_room(settings)
    check_addresses(settings)
    return settings


def _refuse_secrets(tree: dict[str, Any], source: Path) -> None:
    for section, name in SECRETS:
        inner = tree.get(section)
        if isinstance(inner, dict) and name in inner:
            raise SettingsError(
                f"{source} holds {section}.{name}; secrets come from the environment alone: "
                f"set {PREFIX}{section.upper()}__{name.upper()}"
            )


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


def to_environment(settings: Settings) -> dict[str, str]:
    """Return the environment that makes `load_settings` give these settings in a child process."""
    found: dict[str, str] = {}
    for name, value in msgspec.to_builtins(settings, enc_hook=str).items():
        if isinstance(value, dict):
            for inner, leaf in value.items():
                found[f"{PREFIX}{name}__{inner}".upper()] = _text(leaf)
        else:
            found[f"{PREFIX}{name}".upper()] = _text(value)
    return found


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"settings hold no {kind}")


def _check_finite(value: Any, place: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_finite(inner, f"{place}.{name}")
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


def _check_patterns(topics: tuple[DisallowedTopic, ...]) -> None:
    for topic in topics:
        for pattern in topic.patterns:
            try:
                re.compile(pattern, re.IGNORECASE)
            except (re.error, RecursionError, OverflowError) as error:
                raise SettingsError(
                    f"{pattern!r} of topic {topic.name!r} is no regular expression: {error} "
                    "- at `$.streams.disallowed_topics`; write it in the syntax of Python's re"
                ) from error


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


def _text(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return msgspec.json.encode(value).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _override(tree: dict[str, Any], name: str, text: str) -> None:
    steps = name.removeprefix(PREFIX).lower().split("__")
    hints = get_type_hints(Settings)
    if steps[0] not in hints:
        raise SettingsError(f"{name} names no setting; sections: {', '.join(sorted(hints))}")
    value: Any = text
    if text[:1] in ("{", "[") and not _is_text(steps):
        try:
            value = msgspec.json.decode(text.encode())
        except msgspec.DecodeError as error:
            raise SettingsError(f"{name}={text!r} is not JSON: {error}") from error
    place = tree
    for step in steps[:-1]:
        inner = place.get(step)
        if not isinstance(inner, dict):
            inner = place[step] = {}
        place = inner
    place[steps[-1]] = value


def _is_text(steps: list[str]) -> bool:
    """Whether the setting is a string or a path, where a leading bracket is only a character."""
    hint: Any = Settings
    for step in steps:
        if isinstance(hint, type) and issubclass(hint, Struct):
            hint = get_type_hints(hint).get(step)
        else:
            hint = get_args(hint)[1] if get_origin(hint) is dict else None
    return hint in (str, Path)
