"""Random histories on real processes that are hurt at random: nothing lost, nothing twice.

A round sends a history through the gateway's outbox while workers are killed, stopped, added and
taken away, the broker restarts, the gateway dies, its disk fills. At rest, rewards must be those of
SQL over the raw log, every acknowledged event must be accounted for, each decision counted once in
the features; and a fresh worker must make the same of the same log.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.histories import disturbances, history
from tests.histories.running import Running, running
from tests.rounds import given_seed, new_seed, rounds

pytestmark = pytest.mark.loop


def seeds() -> list[int]:
    """Return the seed of each round: the one given, or new ones."""
    seed = given_seed()
    return [new_seed() for _ in range(rounds(2))] if seed is None else [seed]


def play(parts: Running, seed: int, decision: Any, feedback: Any) -> None:
    """Play one round and check it; what fails names the seed that repeats it."""
    rng, began = random.Random(seed), time.monotonic()
    events = history.draw(seed, decision, feedback)
    plan = disturbances.draw(rng, len(events))
    told = f"HEADRACE_TEST_SEED={seed}: {len(events)} events, {', '.join(map(str, plan))}"
    print(told, flush=True)
    with parts.replay() as replay:
        parts.send(rng, events, plan)
        found = parts.rest()
        wrong = parts.differences(found)
        assert not wrong, "\n".join([told, *wrong[:20]])
        at_rest = time.monotonic()
        wrong = parts.replay_differences(found, replay)
        assert not wrong, "\n".join([told, *wrong[:20]])
    assert not parts.workers.died, "\n".join([told, *parts.workers.died])
    live, again = at_rest - began, time.monotonic() - at_rest
    print(f"  sound after {live:.1f} s, replayed in {again:.1f} s", flush=True)


def test_any_history_of_faults_leaves_every_event_accounted_for_and_a_replay_says_the_same(
    tmp_path: Path, decision: Any, feedback: Any
) -> None:
    began = time.monotonic()
    with running(tmp_path) as parts:
        for seed in seeds():
            play(parts, seed, decision, feedback)
        found = parts.rest(claimed=True)
        wrong = parts.differences(found)
        assert not wrong, "\n".join(wrong[:20])
        fates = dict(Counter(found.fates().values()))
        seconds = time.monotonic() - began
    print(
        f"{parts.sent} events sent, {parts.gateway.refused} refused, "
        f"{len(found.decisions)} decisions, feedback {fates}, "
        f"disturbances {dict(parts.happened)}, {seconds:.0f} s"
    )
