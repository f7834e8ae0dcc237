"""The rollout controller's process: settings, signals, heartbeat, connections, and a clean end.

``python -m serving rollout`` runs it; what it does is in `serving.rollout_loop`.
"""

from __future__ import annotations

import logging
import signal
from types import FrameType

from contracts.audit import AuditChain
from contracts.clock import Clock, SystemClock
from contracts.errors import SettingsError
from contracts.ids import NewId, uuid7_ids
from contracts.settings import Settings, load_settings, process_for, settings_for
from contracts.tracing import start_tracing
from serving.engine import Engine
from serving.http_engine import HttpEngine
from serving.rollout_adapters import Adapters
from serving.rollout_log import RolloutLog
from serving.rollout_loop import RolloutLoop
from serving.rollout_status import RolloutStatus

STOP_SECONDS = 5.0


def main(policy: str = "") -> None:
    """Run until SIGTERM or SIGINT; ``policy`` empty means the general one."""
    general = load_settings()
    settings = settings_for(general, policy or general.policy.name)
    process = process_for(general, "rollout", settings.policy.name)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.ERROR)  # it reports each attempt to reconnect
    clock = SystemClock()
    status = RolloutStatus(settings.state_dir, clock, process)

    def stop(_number: int, _frame: FrameType | None) -> None:
        status.stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    tracing = start_tracing(
        process,
        otlp_endpoint=settings.tracing.otlp_endpoint or None,
        span_file=settings.state_dir / "spans" / f"{process}.jsonl",
    )
    given = settings.engine
    engine = HttpEngine(engine_url(settings), given.timeout_seconds, given.key, given.admin_key)
    try:
        control(settings, engine, status, clock, uuid7_ids(clock))
    finally:
        tracing.shutdown()


def control(
    settings: Settings, engine: Engine, status: RolloutStatus, clock: Clock, new_id: NewId
) -> None:
    """Run the rollout loop and its heartbeat until ``status.stopping`` is set."""
    policy = settings.policy.name
    adapters = Adapters(engine, settings, clock, status.stopping)
    log = RolloutLog(settings.kafka, policy, AuditChain("rollout", clock, new_id))
    heartbeat = status.start()
    try:
        RolloutLoop(settings, log, adapters, status, clock, new_id).run()
    finally:
        status.stopping.set()
        log.close()
        adapters.close()
        heartbeat.join(STOP_SECONDS)


def engine_url(settings: Settings) -> str:
    """Return where the engine listens; SettingsError when neither URL nor port is known."""
    if settings.engine.url:
        return settings.engine.url
    if not settings.engine.port:
        raise SettingsError("engine.url and engine.port are both empty; give the one or the other")
    return f"http://127.0.0.1:{settings.engine.port}"
