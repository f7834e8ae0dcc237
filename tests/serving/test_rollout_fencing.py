"""Of two controllers one acts: terms on the real broker, kills, and one that wakes up late."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.audit import AuditChain
from contracts.clock import ManualClock, SystemClock
from contracts.events import Candidate, Rollout
from contracts.ids import NewId
from contracts.settings import Kafka
from contracts.topics import ROLLOUTS
from serving.rollout_lease import Lease
from serving.rollout_log import RolloutLog
from serving.rollout_standby import Standby
from serving.rollout_state import RolloutFollower, newer
from serving.rollout_term import FencedError, Term
from tests.serving.rollout_stage import RULES, EngineServer, Stage, process
from tests.stream_events import NOON
from tests.topic_log import publish
from tests.until import until


def state(epoch: int = 0, term: int = 0, writer: str = "", stable: str = "base") -> Rollout:
    return Rollout(
        id=f"{writer}-{term}-{epoch}-{stable}",
        time=NOON,
        policy="desk",
        epoch=epoch,
        phase="idle",
        stable=Candidate(version=stable),
        term=term,
        writer=writer,
    )


@pytest.fixture
def logs(kafka: Kafka, new_id: NewId) -> Iterator[list[RolloutLog]]:
    """Two logs on the same topics, as of two controllers."""
    chains = [AuditChain("rollout", SystemClock(), new_id) for _ in range(2)]
    made = [RolloutLog(kafka, "desk", chain) for chain in chains]
    yield made
    for log in made:
        log.close()


def folded(*records: Rollout) -> Rollout:
    known: Rollout | None = None
    for record in records:
        known = newer(known, record)
    assert known is not None
    return known


def test_the_first_record_of_the_highest_term_decides_whose_it_is() -> None:
    first, second = state(3, 2, "a"), state(9, 2, "b")
    assert folded(state(5, 1, "b"), first, second) is first
    later = state(4, 2, "a")
    assert folded(first, second, later, state(10, 1, "b")) is later
    assert folded(later, state(4, 3, "b")).writer == "b"


def test_a_term_is_lost_to_the_next_one_and_what_is_written_in_it_then_is_void(
    logs: list[RolloutLog], kafka: Kafka, tmp_path: Path
) -> None:
    one, two = (Term(log, name) for log, name in zip(logs, ("one", "two"), strict=True))
    one.read()
    held = one.claim(state(), {})
    one.write(replace(held, epoch=1), {})
    two.read()
    taken = two.claim(two.newest or state(), {})
    assert (taken.term, taken.epoch, taken.writer) == (2, 1, "two")
    with pytest.raises(FencedError, match="term 2 is held by two"):
        one.check()
    with pytest.raises(FencedError):
        one.write(replace(held, epoch=2, stable=Candidate(version="zombie")), {})
    follower = RolloutFollower(
        kafka, "desk", "test", tmp_path / "cache.json", Lease(ManualClock(), 600.0)
    ).start()
    until("the holder's state", lambda: follower.current and follower.current.writer == "two")
    follower.stop()
    assert follower.current is not None
    assert follower.current.stable.version == "base"


def test_a_void_record_behind_the_last_state_is_covered_by_it_again(
    logs: list[RolloutLog], kafka: Kafka
) -> None:
    term = Term(logs[0], "one")
    held = term.claim(state(), {})
    publish(kafka, ROLLOUTS, state(7, 0, "zombie", "evil"), state(7, held.term, "late", "evil"))
    term.check()
    term.check()
    seen = [event for event, _ in logs[1].states()]
    assert [found.writer for found in seen] == ["one", "zombie", "late", "one"]
    assert seen[-1] == held


def test_of_two_that_claim_at_once_the_first_on_the_topic_holds_the_term(
    logs: list[RolloutLog],
) -> None:
    one, two = (Term(log, name) for log, name in zip(logs, ("one", "two"), strict=True))
    one.read()
    two.read()  # both have seen the same end
    held = one.claim(state(), {})
    with pytest.raises(FencedError, match="held by one"):
        two.claim(state(), {})
    one.check()
    assert one.newest is not None
    assert one.newest.writer == held.writer == "one"


def test_one_that_stands_by_takes_over_after_the_others_silence(logs: list[RolloutLog]) -> None:
    one, two = (Term(log, name) for log, name in zip(logs, ("one", "two"), strict=True))
    clock = ManualClock()
    held = one.claim(state(), {})
    two.read()
    standby = Standby(two, logs[1], clock, takeover_seconds=30.0)
    assert not standby.stays("desk")
    standby.enter()
    assert standby.stays("desk")
    clock.advance(20.0)
    one.write(held, {})
    assert standby.stays("desk")
    clock.advance(29.0)
    assert standby.stays("desk")
    assert standby.note == "standing by: term 1 is held by one"
    clock.advance(2.0)
    assert not standby.stays("desk")
    assert two.claim(held, {}).term == 2


def test_a_controller_that_slept_through_a_rollout_wakes_up_and_does_nothing(
    stage: Stage,
) -> None:
    """It is stopped in mid-canary; another promotes, and a second rollout begins."""
    with EngineServer(stage.engine) as server, process(stage, server.port) as sleeper:
        version = stage.released()
        canary = stage.state("canary", version)
        sleeper.send_signal(signal.SIGSTOP)
        with process(stage, server.port) as other:
            until("the next term", lambda: stage.states()[-1].term == canary.term + 1)
            stage.serve(canary, range(80))
            promoted = stage.state("promoted", version)
            sleeper.send_signal(signal.SIGCONT)
            until("the sleeper is fenced", lambda: "rollout.fenced" in actions(stage))
            second = stage.released()
            stage.serve(stage.state("canary", second), range(80))
            last = stage.state("promoted", second)
            assert (sleeper.poll(), other.poll()) == (None, None)
    assert {promoted.writer, last.writer} == {promoted.writer}
    assert promoted.writer != canary.writer
    assert actions(stage).count("rollout.started") == actions(stage).count("rollout.promoted") == 2
    epochs = [found.epoch for found in stage.states()]
    assert epochs == sorted(epochs)


def test_the_one_that_stands_by_goes_on_with_the_same_rollout_when_the_other_is_killed(
    stage: Stage,
) -> None:
    rules = replace(RULES, takeover_seconds=1.5)
    stage.settings = replace(stage.settings, rollout=rules)
    with EngineServer(stage.engine) as server, process(stage, server.port) as first:
        version = stage.released()
        canary = stage.state("canary", version)
        with process(stage, server.port) as second:
            until("the first is fenced", lambda: "rollout.fenced" in actions(stage))
            second.send_signal(signal.SIGKILL)
            until("its turn again", lambda: stage.states()[-1].term == canary.term + 2)
            stage.serve(canary, range(80))
            promoted = stage.state("promoted", version)
            assert first.poll() is None
    assert (promoted.rollout_id, promoted.writer) == (canary.rollout_id, canary.writer)


def actions(stage: Stage) -> list[str]:
    return [record.action for record in stage.audits()]
