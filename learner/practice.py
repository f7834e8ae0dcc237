"""Practice: prompts whose answers can be checked, answered by the policy itself in groups.

What an answer is worth is told by its group: the others are answers to the same prompt by the same
weights. Which prompts a batch practises, and every draw, is a function of the weights, the seed and
the number of the batch, so a restart practises the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from jinja2 import TemplateError
from msgspec import Struct
from msgspec.structs import replace

from contracts.errors import SettingsError
from contracts.settings import Learner, Settings
from guard.prompts import SHIPPED_RED_TEAM, PromptCase, meets, parsed, read_prompts, violates
from guard.rules import Rules, compile_rules
from learner.buckets import TokenSequence, bucketed, padded
from learner.chat_template import templated
from learner.losses import LOSSES, Bounds, Terms, group_relative, leave_one_out
from learner.policy import Policy

_TEMPLATE_ERRORS = (
    *(TemplateError, ValueError, TypeError, LookupError),
    *(AttributeError, ArithmeticError, RecursionError),
)
"""What a chat template raises: it is a program, whose expressions are computed as Python's are."""

_ADVANTAGES = {"grpo": group_relative, "rloo": leave_one_out}


class Exercise(Struct, frozen=True):
    """A prompt, and its tokens as the engine would see them."""

    case: PromptCase
    prompt_ids: tuple[int, ...]


class Practice(Struct, frozen=True):
    """The exercises of a file, the sha256 of its bytes, and the rules that answers must keep."""

    exercises: tuple[Exercise, ...]
    digest: str
    rules: Rules


class Practised(Struct, frozen=True):
    """An answer of the policy's own: what it earned, and what that is worth within its group.

    ``prox`` has the log-probability of each of its tokens under the policy that drew it.
    """

    answer: TokenSequence
    reward: float
    advantage: float
    prox: tuple[float, ...] = ()


def read_practice(settings: Settings, tokenizer: Any) -> Practice | None:
    """Return the exercises that ``learner.practice.prompts`` names, None when it names none.

    Raises SettingsError for a file that is none, for a prompt that leaves no room for an answer or
    that the chat template refuses, and for one that the gate asks, too: what is practised shows
    nothing there.
    """
    config = settings.learner.practice
    if not config.prompts:
        return None
    path = Path(config.prompts)
    found = read_prompts(path, "learner.practice.prompts")
    _check_apart(found.prompts, settings)
    exercises = []
    for place, case in enumerate(found.prompts, 1):
        exercise = Exercise(case, _rendered(tokenizer, case, f"{path} prompt {place}"))
        if len(exercise.prompt_ids) + config.max_tokens > settings.engine.max_model_len:
            raise SettingsError(
                f"{path} prompt {place} has {len(exercise.prompt_ids)} tokens, which with "
                f"learner.practice.max_tokens ({config.max_tokens}) are more than "
                f"engine.max_model_len ({settings.engine.max_model_len}); shorten it or lower the "
                "former"
            )
        exercises.append(exercise)
    return Practice(tuple(exercises), found.digest, compile_rules(settings))


def practise(
    policy: Policy, practice: Practice, config: Learner, number: int
) -> tuple[Practised, ...]:
    """Return the answers that batch ``number`` practises on, group by group."""
    rng = random.Random(f"{config.seed}/{number}/practice")
    count = min(config.practice.prompts_per_batch, len(practice.exercises))
    places = sorted(rng.sample(range(len(practice.exercises)), count))
    found: list[Practised] = []
    for exercise in (practice.exercises[place] for place in places):
        prompts = [exercise.prompt_ids] * config.practice.answers
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        drawn = policy.draw_each(prompts, config.practice.max_tokens, generator)
        rewards = [
            reward_of(practice.rules, exercise.case, policy.text_of(ids)) if ended else 0.0
            for ids, ended in drawn
        ]
        [advantages] = _ADVANTAGES[config.practice.loss](torch.tensor([rewards])).tolist()
        for (ids, _), reward, advantage in zip(drawn, rewards, advantages, strict=True):
            found.append(Practised(TokenSequence(exercise.prompt_ids, ids), reward, advantage))
    scores = policy.logprobs([one.answer for one in found], config.bucket_tokens)
    return tuple(replace(one, prox=tuple(row)) for one, row in zip(found, scores, strict=True))


def reward_of(rules: Rules, case: PromptCase, text: str) -> float:
    """Return 1 for an answer that is as expected and keeps the rules, else 0."""
    answer = parsed(case, text)
    return float(meets(case.expect, answer) and not violates(rules, case, answer))


def add_practice_gradients(
    policy: Policy, practised: Sequence[Practised], fill: float, config: Learner, bounds: Bounds
) -> float:
    """Add the gradients of practice, each answer with a share of ``fill``; return their loss.

    A group whose answers all earned the same teaches nothing, and is left out of the passes.
    """
    taught = [one for one in practised if one.advantage and all(map(math.isfinite, one.prox))]
    total = 0.0
    buckets = bucketed([one.answer for one in taught], config.bucket_tokens)
    for bucket in policy.share(buckets, with_gradient=True):
        chosen = [taught[place] for place in bucket.members]
        prox_bt = padded([one.prox for one in chosen], bucket.mask_bt.shape[1])
        logp_bt, _ = policy.score(bucket)
        terms = Terms(
            logp_bt=logp_bt,
            prox_bt=prox_bt,
            mu_bt=prox_bt,
            anchor_bt=prox_bt,
            advantage_b=torch.tensor([one.advantage for one in chosen]),
            mask_bt=bucket.mask_bt,
        )
        loss = LOSSES[config.practice.loss](terms, bounds).loss_b.sum()
        loss = fill * loss / (len(practised) * config.length_scale)
        (config.practice.weight * loss).backward()
        total += float(loss.detach())
    return total


def mean_reward(practised: Sequence[Practised]) -> float:
    """Return the share of answers that were as expected, 0 of none."""
    return sum(one.reward for one in practised) / max(len(practised), 1)


def _check_apart(cases: Sequence[PromptCase], settings: Settings) -> None:
    """Raise SettingsError when the gate asks one of them: it would measure what was drilled."""
    red_team = settings.gate.red_team_prompts or str(SHIPPED_RED_TEAM)
    for name, given in (
        ("regression_prompts", settings.gate.regression_prompts),
        ("red_team_prompts", red_team),
    ):
        path = Path(given)
        if not path.is_file():  # it lies with the rollout controller, or there is none
            continue
        asked = [case.messages for case in read_prompts(path, f"gate.{name}").prompts]
        for place, case in enumerate(cases, 1):
            if case.messages in asked:
                raise SettingsError(
                    f"prompt {place} of {settings.learner.practice.prompts} is asked at the gate, "
                    f"too ({path}) - at `$.learner.practice.prompts`; keep the two sets apart"
                )


def _rendered(tokenizer: Any, case: PromptCase, what: str) -> tuple[int, ...]:
    """Return the tokens of a prompt by the chat template, as an engine gives it the arguments."""
    try:
        messages = [_as_template(message) for message in case.messages]
        text = templated(tokenizer, messages, case.tools, ask=True)
    except _TEMPLATE_ERRORS as error:
        raise SettingsError(
            f"{what}: the chat template of policy.model refuses it ({error}) - at "
            "`$.learner.practice.prompts`; change or remove it"
        ) from error
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _as_template(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as chat templates read it: arguments of calls as an object."""
    calls = [
        {**call, "function": {**call["function"], "arguments": _decoded(call["function"])}}
        for call in message.get("tool_calls") or ()
    ]
    return {**message, "tool_calls": calls} if calls else message


def _decoded(function: dict[str, Any]) -> Any:
    return msgspec.json.decode(function.get("arguments") or "{}")
