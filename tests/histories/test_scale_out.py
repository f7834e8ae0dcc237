"""One worker becomes three under load and one again, and the results are those of the rules."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.histories import history
from tests.histories.running import Running, running

pytestmark = pytest.mark.loop

SIZES = (2, 3, 2, 1)
STEP_SECONDS = 120.0


def test_one_worker_becomes_three_under_load_and_one_again_with_the_same_results(
    tmp_path: Path, decision: Any, feedback: Any
) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    rng = random.Random(seed)

    def load(parts: Running, members: int) -> None:
        """Send until every member has read decisions of its own, and one history more."""
        before, deadline = parts.workers.decisions(), time.monotonic() + STEP_SECONDS
        while True:
            reads = parts.workers.decisions()
            share = [number for number, count in reads.items() if count > before.get(number, 0)]
            events = history.draw(rng.randrange(1_000_000_000), decision, feedback)
            parts.send(rng, events, ())
            if len(share) == members:
                break
            assert time.monotonic() < deadline, f"{members} members: {parts.workers.state()}"

    with running(tmp_path, partitions=6) as parts, parts.replay() as replay:
        load(parts, 1)
        for size in SIZES:
            if size > len(parts.workers.members):
                parts.workers.join()
            else:
                parts.workers.leave(min(parts.workers.members))
            load(parts, size)
        found = parts.rest(claimed=True)
        wrong = [*parts.differences(found), *parts.replay_differences(found, replay)]
        assert not wrong, "\n".join([f"seed {seed}", *wrong[:20]])
        assert not parts.workers.died, parts.workers.died
        print(f"{parts.sent} events, {len(found.decisions)} decisions")
