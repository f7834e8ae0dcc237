"""The first decision of an answer: which tool it calls, or that it speaks; told from tokens alone.

A call begins with tokens that all calls share and goes on with the tool's name. The decision is
taken where an answer leaves the shared beginning, or with the first token of a name. That is a
stopping time, so the weight of the tokens up to there has mean 1 under the logging policy; using it
for the reward of the whole answer assumes that, given the decision, the candidate goes on as the
logging policy did (the idea of MIPS, Saito & Joachims, ICML 2022).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from contracts.events import FunctionCall, Message, ToolCall
from learner.assistant_turn import assistant_text
from learner.buckets import TokenSequence
from learner.policy import Policy

MOST_TOOLS = 16
SPEAKS = "answer"
"""The decision of every answer that does not begin as the call of a known tool."""

_NO_TOOL = "zqx"
"""No tool's name: its call shares with every real one only what all calls share."""


class Decisions(Struct, frozen=True):
    """The first decisions there are: ``names`` begins with `SPEAKS`, ``name_ids`` with the tools.

    ``opening`` are the tokens that all calls share. Tools whose names begin with the same token
    are one decision.
    """

    names: tuple[str, ...]
    opening: tuple[int, ...]
    name_ids: tuple[int, ...]


class Taken(Struct, frozen=True):
    """The decision an answer took, as a place in `Decisions.names`, and after how many tokens."""

    place: int
    tokens: int


def decisions_of(tokenizer: Any, actions: Iterable[str]) -> Decisions:
    """Return the first decisions among the actions seen, the most frequent tools alone."""
    seen = Counter(action for action in actions if action and action != SPEAKS)
    tools = sorted(
        name for name, _ in sorted(seen.items(), key=lambda x: (-x[1], x[0]))[:MOST_TOOLS]
    )
    calls = {name: _call_ids(tokenizer, name) for name in tools}
    opening = _shared([*calls.values(), _call_ids(tokenizer, _NO_TOOL)])
    by_token: dict[int, list[str]] = {}
    for name, ids in calls.items():
        if len(ids) > len(opening):
            by_token.setdefault(ids[len(opening)], []).append(name)
    return Decisions(
        names=(SPEAKS, *("|".join(names) for names in by_token.values())),
        opening=opening,
        name_ids=tuple(by_token),
    )


def taken(decisions: Decisions, token_ids: Sequence[int]) -> Taken:
    """Return the first decision of an answer, given its tokens."""
    for place, expected in enumerate(decisions.opening):
        if place >= len(token_ids) or token_ids[place] != expected:
            return Taken(0, min(place + 1, len(token_ids)))
    after = len(decisions.opening)
    if after < len(token_ids) and token_ids[after] in decisions.name_ids:
        return Taken(1 + decisions.name_ids.index(token_ids[after]), after + 1)
    return Taken(0, min(after + 1, len(token_ids)))


def probabilities(
    policy: Policy,
    decisions: Decisions,
    questions: Sequence[TokenSequence],
    tokens: int,
    *,
    adapted: bool = True,
) -> NDArray[np.float64]:
    """Return the policy's probability of each first decision, n×k; rows sum to 1.

    One forward pass per question, over its prompt and the opening of a call; responses are
    ignored. What is no call of a known tool counts as speaking.
    """
    asked = [TokenSequence(q.prompt_ids, (*decisions.opening, 0), q.temperature) for q in questions]
    opened_nk = np.exp(
        np.array(policy.branch_logprobs(asked, decisions.name_ids, tokens, adapted=adapted))
    ).reshape(len(asked), len(decisions.name_ids))
    speaks_n1 = np.clip(1.0 - opened_nk.sum(axis=1, keepdims=True), 0.0, 1.0)
    found_nk = np.concatenate([speaks_n1, opened_nk], axis=1)
    return np.asarray(found_nk / found_nk.sum(axis=1, keepdims=True))


def _call_ids(tokenizer: Any, name: str) -> tuple[int, ...]:
    call = ToolCall(id="call", function=FunctionCall(name, "{}"))
    text = assistant_text(Message(role="assistant", tool_calls=(call,)))
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _shared(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the longest common beginning."""
    shortest = min(len(sequence) for sequence in sequences)
    for place in range(shortest):
        if len({sequence[place] for sequence in sequences}) > 1:
            return tuple(sequences[0][:place])
    return tuple(sequences[0][:shortest])
