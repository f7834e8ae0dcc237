"""The controller as a process: killed at any moment it goes on and counts each event once."""

from __future__ import annotations

import signal

import msgspec

from contracts.broker import events_to_end
from contracts.codec import trace_headers
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
