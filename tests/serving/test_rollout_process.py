"""The controller as a process: killed at any moment it goes on and counts each event once."""

from __future__ import annotations

import signal

import msgspec
import pytest

from contracts.broker import events_to_end
from contracts.codec import trace_headers
from contracts.events import Rollout
from contracts.topics import ROLLOUTS
from serving.assignment import assign
from tests.serving.rollout_stage import TRACEPARENT, EngineServer, Stage, process
from tests.until import until


def test_a_controller_killed_in_mid_canary_goes_on_and_counts_each_event_once(
    stage: Stage,
) -> None:
    with EngineServer(stage.engine) as server:
        with process(stage, server.port) as child:
            version = stage.released()
            canary = stage.state("canary", version)
            stage.serve(canary, range(15), rewards=None)
            until("15 are counted", lambda: stage.requests() == 15)
            stage.serve(canary, range(15, 18), rewards=None)  # read, perhaps not yet published
            child.send_signal(signal.SIGKILL)
            child.wait(10)
        stage.serve(canary, range(10, 20), rewards=None)  # most of them for the second time
        with process(stage, server.port) as child:
            until("all 20", lambda: stage.requests() == 20)
            counted = stage.states()[-1]
            expected = [assign(canary, "desk", f"user-{n}").arm for n in range(20)]
            assert (counted.rollout_id, counted.salt) == (canary.rollout_id, canary.salt)
            assert counted.evidence.users == counted.evidence.requests
            assert counted.evidence.requests["canary"] == expected.count("canary")
            stage.serve(canary, range(20, 100))
            promoted = stage.state("promoted", version)
            child.send_signal(signal.SIGTERM)
            assert child.wait(15) == 0
    assert promoted.rollout_id == canary.rollout_id
    spans = (stage.settings.state_dir / "spans" / "rollout.jsonl").read_text()
    assert "rollout.promoted" in spans


def test_the_state_carries_the_trace_of_its_step_which_links_to_the_release(stage: Stage) -> None:
    with EngineServer(stage.engine) as server, process(stage, server.port) as child:
        stage.state("canary", stage.released())
        child.send_signal(signal.SIGTERM)
        assert child.wait(15) == 0
    records = [(r, e) for r, e in events_to_end(stage.kafka, (ROLLOUTS,), "test")]
    traces = [trace_headers(r.headers) for r, e in records if getattr(e, "phase", "") == "canary"]
    spans = (stage.settings.state_dir / "spans" / "rollout.jsonl").read_text()
    begin = next(
        s for s in map(msgspec.json.decode, spans.splitlines()) if s["name"] == "rollout.begin"
    )
    assert traces[0]["traceparent"].split("-")[1] == begin["context"]["trace_id"].removeprefix("0x")
    assert begin["links"][0]["context"]["trace_id"] == "0x" + TRACEPARENT.split("-")[1]


@pytest.mark.parametrize(
    ("point", "written"),
    [(1, False), (2, False), (2, True), (3, False), (4, True)],
    ids=["no term yet", "started, audited", "started", "counted, not written", "counted, written"],
)
def test_wherever_a_controller_dies_the_next_one_counts_each_event_once(
    stage: Stage, point: int, written: bool
) -> None:
    dying = stage.crashing_controller(point, written=written)
    version = stage.released()
    begun = until("a canary or the end", lambda: canary_of(stage) or not dying.is_alive())
    if isinstance(begun, Rollout):
        stage.serve(begun, range(15))
        until("some are counted or the end", lambda: not dying.is_alive() or stage.requests() > 0)
        stage.serve(begun, range(15, 18))
    dying.join(30)
    assert not dying.is_alive()
    with stage.controller():
        canary = stage.state("canary", version)
        stage.serve(canary, range(19))  # most of them for the second time
        until("19 are counted", lambda: stage.requests() == 19)
        stage.serve(canary, range(19, 90))
        promoted = stage.state("promoted", version)
    assert promoted.rollout_id == canary.rollout_id
    assert len({found.rollout_id for found in stage.states() if found.candidate}) == 1


def canary_of(stage: Stage) -> Rollout | None:
    states = stage.states()
    return states[-1] if states and states[-1].phase == "canary" else None
