"""The audit of a start that had to be tried again tells of the rollout that began."""

from __future__ import annotations

from contracts.audit import AuditChain, broken_links
from contracts.clock import SystemClock
from contracts.codec import Record
from contracts.errors import DeadlineError
from contracts.topics import AUDIT
from serving.rollout_adapters import Adapters
from serving.rollout_log import RolloutLog
from serving.rollout_loop import RolloutLoop
from serving.rollout_status import RolloutStatus
from tests.serving.rollout_stage import Stage
from tests.until import until


class LosingLog(RolloutLog):
    """A log whose first delivery of the audit ``rollout.started`` is given up."""

    lost = 0

    def _deliver(self, record: Record) -> int:
        if record.topic == AUDIT and b'"rollout.started"' in record.value and not self.lost:
            self.lost += 1
            raise DeadlineError("audit: nothing came back in time")
        return super()._deliver(record)


def test_the_audited_plan_is_that_of_the_rollout_although_its_first_delivery_failed(
    stage: Stage,
) -> None:
    clock = SystemClock()
    log = LosingLog(stage.kafka, "desk", AuditChain("rollout", clock, stage.new_id))
    status = RolloutStatus(stage.settings.state_dir, clock)
    adapters = Adapters(stage.engine, stage.settings, clock, status.stopping)
    loop = RolloutLoop(stage.settings, log, adapters, status, clock, stage.new_id)
    stage.released()

    def started() -> bool:
        try:
            loop.step()
        except DeadlineError:
            assert log.lost == 1
        return loop.state.phase == "canary"

    try:
        until("the start after a failed one", started)
        state = loop.state
    finally:
        log.close()
        adapters.close()
    records = stage.audits()
    [record] = [found for found in records if found.action == "rollout.started"]
    assert log.lost == 1
    assert record.detail["plan"] == state.plan
    assert (record.detail["rollout_id"], record.detail["salt"]) == (state.rollout_id, state.salt)
    assert broken_links(records) == []
