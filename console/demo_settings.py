"""The settings of a demonstration run: fast ones, the product's, and on top what was given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from console.demo_gate import REGRESSION_NAME
from console.log_access import SETTINGS_NAME
from contracts.settings import SECRETS, Settings, load_settings

FAST: dict[str, Any] = {
    "gateway": {"port": 0, "max_tokens": 32},
    # Users of the demo must see what the policy does, right and wrong: its learning is the show.
    "guard": {"layers": {"disallowed_topic": "observe", "personal_data": "observe"}},
    "streams": {"window_seconds": 12.0},
    "learner": {"batch_samples": 64, "publish_every": 2},
    "gate": {
        "min_samples": 16,
        "min_users": 5,
        "min_incumbent_samples": 0,
        "min_effective_samples": 8.0,
        "min_effective_share": 0.05,
        "max_weight_share": 0.5,
        "max_mean_weight_errors": 5.0,
        "max_kl": 20.0,
        "value_margin": 0.5,
        "max_cost": 0.4,
        "cost_margin": 0.2,
        "slice_alpha": 0.01,
        "min_regression_rate": 0.0,
        "max_red_team_rate": 1.0,
        "concurrency": 8,
    },
    "rollout": {
        "steps": [
            {
                "weight": 0.0,
                "shadow_share": 1.0,
                "min_canary_requests": 10,
                "min_canary_users": 5,
                "max_wait_seconds": 60.0,
            },
            {
                "weight": 0.5,
                "min_canary_requests": 40,
                "min_canary_users": 10,
                "max_wait_seconds": 60.0,
            },
        ],
        "min_rewards": 1,
        "reward_margin": 2.0,
        "cooldown_seconds": 2.0,
        "publish_seconds": 0.5,
    },
}
"""Hours of a product's traffic pass in minutes, so windows and samples shrink likewise. So few
rewards of judges bound no difference: a rollout asks for one and shows them, and at margin 2 they
decide nothing. A version waits for the canary before it, so that a canary is half of the users.
The base is right about every second time and knows no red team, so rates are held to its own alone.
"""

LARGE: dict[str, Any] = {
    "gateway": {"max_tokens": 24},
    "engine": {"timeout_seconds": 180.0},
    "learner": {"batch_samples": 8, "publish_every": 1, "learning_rate": 1e-4},
    "gate": {"mode": "observe", "deadline_seconds": 600.0},
    "rollout": {
        "steps": [
            {
                "weight": 0.0,
                "shadow_share": 0.5,
                "min_canary_requests": 2,
                "min_canary_users": 1,
                "max_wait_seconds": 300.0,
            },
            {
                "weight": 0.5,
                "min_canary_requests": 10,
                "min_canary_users": 5,
                "max_wait_seconds": 300.0,
            },
        ],
        "first_token_limit_seconds": 60.0,
        "answer_limit_seconds": 60.0,
        "min_rewards": 1,
    },
}
"""A real chat model on two cores answers a question in seconds while it also learns: answers are
short and waited for, a version comes after few samples, and its canary needs half of the users and
minutes. A step at the small policy's learning rate would leave the trust region. A dozen answers of
judges are no evidence, so the gate reports and lets through."""

KEPT = ("kafka", "engine", "features", "tracing", "data_dir")
"""Where things are stays as given."""


class Extent(Struct, frozen=True, kw_only=True):
    """How much is asked: live questions, how many a second, and held-out ones before and after."""

    interactions: int
    rate: float
    held_out: int


SMALL_POLICY = Extent(interactions=2400, rate=6.0, held_out=768)
GIVEN_MODEL = Extent(interactions=64, rate=0.2, held_out=16)
"""Enough for a version or a few, far too little to judge one by: that takes hours on two cores."""


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trees laid over each other, later ones on top; mappings merge key by key."""
    merged: dict[str, Any] = {}
    for tree in trees:
        for name, value in tree.items():
            below = merged.get(name)
            if isinstance(below, dict) and isinstance(value, Mapping) and name != "reward":
                merged[name] = merge(below, value)
            else:
                merged[name] = dict(value) if isinstance(value, Mapping) else value
    return merged


class DemoPolicy(Struct, frozen=True, kw_only=True):
    """The base policy: ``own`` when it was given, not made by a warm start; the learner's seed."""

    model: str
    own: bool = False
    seed: int = 0


def changed(given: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from the defaults; a reward that differs anywhere comes whole."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        below = default.get(name)
        if value == below:
            continue
        if isinstance(value, Mapping) and isinstance(below, Mapping) and name != "reward":
            found[name] = changed(value, below)
        else:
            found[name] = value
    return found


def demo_settings(
    given: Settings, run_dir: Path, engine: str, policy: DemoPolicy, product: Mapping[str, Any]
) -> Settings:
    """Write the run's settings into its directory and return them.

    A given setting that differs from its default wins over the demo's and the product's. On a
    broker that was given, every run gets topics of its own, by prefix. The file holds no secret.
    """
    tree = msgspec.to_builtins(given, enc_hook=str)
    for section, name in SECRETS:
        del tree[section][name]
    kept = {name: tree[name] for name in KEPT}
    placed: dict[str, Any] = {
        "state_dir": str(run_dir),
        "policy": {"name": given.policy.name, "model": policy.model},
        "engine": {"kind": engine},
        "gateway": {"api_keys_file": ""},  # simulated users have no keys
        "data_dir": str(given.data_dir.absolute()),
    }
    if given.kafka.bootstrap:
        placed["kafka"] = {**tree["kafka"], "prefix": f"{given.kafka.prefix}{run_dir.name}-"}
    path = run_dir / SETTINGS_NAME
    run_dir.mkdir(parents=True, exist_ok=True)
    regression = str(run_dir / REGRESSION_NAME)
    seeded = {"learner": {"seed": policy.seed}, "gate": {"regression_prompts": regression}}
    wanted = changed(tree, msgspec.to_builtins(Settings(), enc_hook=str))
    merged = merge(kept, FAST, product, LARGE if policy.own else {}, seeded, wanted, placed)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(merged), indent=2))
    settings = load_settings(path, {})
    given_engine, secret = given.engine, given.gateway.feedback_secret
    engine_keys = replace(settings.engine, key=given_engine.key, admin_key=given_engine.admin_key)
    gateway = replace(settings.gateway, feedback_secret=secret)
    return replace(settings, engine=engine_keys, gateway=gateway)
