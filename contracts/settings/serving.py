"""The policies, the engine that runs them, and the gateway in front."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from contracts.settings.rollout import Rollout
from contracts.settings.section import Count, NonNegative, Port, Positive, Section, Span

PolicyName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Key = Annotated[str, Meta(pattern=r"^[!-~]*\Z")]


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
    feature_max_age_seconds: Span = 86_400.0
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


class Segment(Section, frozen=True):
    """Users with a policy of their own, and perhaps a rollout plan and a reward model of their own.

    An empty ``tier``, ``language`` or ``region`` fits any; the first segment that fits a request
    has it, and what fits none has ``policy.name``.
    """

    policy: PolicyName
    tier: str = ""
    language: str = ""
    region: str = ""
    rollout: Rollout | None = None
    reward_model: str = ""
