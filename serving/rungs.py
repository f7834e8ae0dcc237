"""The rungs of the ladder a request goes down: who may answer it, in order, and the last resort.

Canary, stable, base, and at the end a reply by rule, so that no request ends in an error for want
of a policy. Plain functions and frozen values; the climbing itself is in `serving.ladder`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from msgspec import Struct

from contracts.events import BASE_VERSION, RULE_VERSION, Assignment, Rollout, Rung
from contracts.settings import Gateway
from contracts.tool_calls import CLOSE, OPEN
from serving.engine import EngineAnswer, EngineChunk, EngineRequest

STOP = "stop"


class Step(Struct, frozen=True):
    """One rung and the assignment that its answer is logged under."""

    rung: Rung
    assignment: Assignment


def steps_of(
    assignment: Assignment, state: Rollout | None, *, with_rule: bool = True
) -> tuple[Step, ...]:
    """Return the assigned version and those that may answer in its place: stable, base, a rule.

    A fallback carries the probability of the arm it answers for.
    """
    found = [Step(assignment.arm if assignment.arm == "canary" else "stable", assignment)]
    if assignment.arm == "canary" and state is not None:
        found.append(Step("stable", _instead(assignment, state.stable.version)))
    if found[-1].assignment.policy_version != BASE_VERSION:
        found.append(Step("base", _instead(assignment, BASE_VERSION)))
    if with_rule:
        found.append(Step("rule", _instead(assignment, RULE_VERSION)))
    return tuple(found)


class RuleReply:
    """Answers every request with the settings' reply, as an engine would, without a model.

    When the request offers the tool ``gateway.fallback_tool``, the reply calls it too.
    """

    def __init__(self, settings: Gateway) -> None:
        self._text = settings.fallback_reply
        self._tool = settings.fallback_tool

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        """Return the reply as a whole answer, without tokens: nobody drew them."""
        return EngineAnswer(self._reply(request), (), (), (), STOP)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Yield the reply as one chunk."""
        yield EngineChunk(self._reply(request), finish_reason=STOP)

    def _reply(self, request: EngineRequest) -> str:
        for tool in request.tools:
            function = tool["function"]
            if function["name"] == self._tool:
                arguments = least_arguments(function.get("parameters") or {}, self._text)
                if arguments is not None:
                    call = {"name": self._tool, "arguments": arguments}
                    return f"{self._text}{OPEN}{json.dumps(call)}{CLOSE}"
        return self._text


def least_arguments(schema: Mapping[str, Any], reason: str) -> dict[str, str] | None:
    """Return arguments that a tool's JSON Schema requires, ``reason`` for each free text.

    None when it requires something else than texts: then no rule may make the call.
    """
    properties, required = schema.get("properties"), schema.get("required") or []
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return None if required else {}
    arguments: dict[str, str] = {}
    for name in required:
        kind = properties.get(name)
        if not isinstance(kind, Mapping) or kind.get("type") != "string":
            return None
        allowed = kind.get("enum")
        value = allowed[0] if isinstance(allowed, list) and allowed else reason
        arguments[str(name)] = str(value)
    return arguments


def _instead(assignment: Assignment, version: str) -> Assignment:
    return Assignment(
        policy=assignment.policy,
        policy_version=version,
        arm="stable",
        probability=(
            1.0 - assignment.canary_weight if assignment.arm == "canary" else assignment.probability
        ),
        canary_weight=assignment.canary_weight,
        rollout_id=assignment.rollout_id,
    )
