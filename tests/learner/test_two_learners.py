"""Two learners of one policy do not work in one state directory; those of two policies do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from msgspec.structs import replace

from contracts.clock import ManualClock
from contracts.errors import UnavailableError
from contracts.ids import NewId
from contracts.settings import Kafka, Settings
from learner.directory import owned
from learner.loop import run
from learner.progress import Progress
from tests.learner.reading import no_means

SECONDS = 120.0


def test_a_second_learner_is_refused_before_it_touches_anything(
    settings: Settings, kafka: Kafka, clock: ManualClock, new_id: NewId
) -> None:
    mine = replace(settings, kafka=kafka)
    partial = settings.state_dir / "checkpoints" / "assistant" / ".partial-1"
    partial.mkdir(parents=True)
    stop = Event()

    def learn(settings: Settings) -> Progress:
        return run(settings, clock, new_id, stop, no_means, process="learner")

    with ThreadPoolExecutor(1) as pool:
        with owned(mine):
            running = pool.submit(learn, mine)
            try:
                with pytest.raises(UnavailableError) as error:
                    running.result(SECONDS)
            finally:
                stop.set()
            assert str(settings.state_dir) in str(error.value)
            assert "stop that one first" in str(error.value)
            assert partial.is_dir()
            other = replace(mine, policy=replace(mine.policy, name="another"))
            assert pool.submit(learn, other).result(SECONDS).batches == 0
        assert pool.submit(learn, mine).result(SECONDS).batches == 0
    assert not partial.exists()
