"""``python -m streams [--worker N]``: one stream worker, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from typing import Any

from contracts.errors import HeadraceError, SettingsError
from contracts.settings import Settings, load_settings

TICK_SECONDS = 0.25
BEAT_SECONDS = 1.0
STOP_SECONDS = 20.0
GC_THRESHOLD = 20_000, 20, 20
"""Allocations, and young collections, between collections: open decisions live for minutes, and the
default of 700 looks for garbage among them many times a batch."""

_log = logging.getLogger("streams")


def main() -> int:
    """Parse, then import what is heavy, then run; 0 after a clean stop, 1 to be started anew."""
    parser = argparse.ArgumentParser(prog="python -m streams", description=__doc__)
    parser.add_argument("--worker", type=int, default=1, help="number of this worker (default 1)")
    number: int = parser.parse_args().worker
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("faust", "mode", "aiokafka", "kafka", "feast"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return asyncio.run(_run(load_settings(), number))
    except HeadraceError as error:
        _log.error("%s", error)
        return 1


async def _run(settings: Settings, number: int) -> int:
    from contracts.audit import AuditChain
    from contracts.clock import SystemClock
    from contracts.ids import uuid7_ids
    from contracts.tracing import start_tracing
    from feature_store.writer import FeatureWriter
    from streams.delivery import FeatureLog
    from streams.worker import Worker

    if settings.streams.quarantine.proof == "required" and not settings.gateway.feedback_secret:
        raise SettingsError(
            "gateway.feedback_secret is empty, and feedback is proven with it; set "
            "HEADRACE_GATEWAY__FEEDBACK_SECRET to what the gateway has, or "
            "streams.quarantine.proof to optional"
        )
    process, clock = f"streams-{number}", SystemClock()
    stop = asyncio.Event()
    for number_of_signal in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number_of_signal, stop.set)
    tracing = start_tracing(
        process,
        otlp_endpoint=settings.tracing.otlp_endpoint or None,
        span_file=settings.state_dir / "spans" / f"{process}.jsonl",
    )
    features = FeatureLog(FeatureWriter(settings, clock, process), settings.features.window_seconds)
    audit = AuditChain(process, clock, uuid7_ids(clock))
    worker = Worker(settings, number, clock, audit, features)
    gc.collect()
    gc.freeze()  # what is loaded stays: collections need not look through it again and again
    gc.set_threshold(*GC_THRESHOLD)
    try:
        return await serve(worker, stop)
    finally:
        await worker.delivery.close()
        await worker.lookup.close()
        tracing.shutdown()


async def serve(worker: Any, stop: asyncio.Event) -> int:
    """Run a worker until ``stop`` is set or a part of it ends; 0 after the former, 1 else."""
    tasks = {
        asyncio.create_task(coroutine, name=name)
        for name, coroutine in (
            ("the Faust app", _keep_running(worker)),
            ("the timer of windows", _close_windows(worker)),
            ("the heartbeat", _beat(worker)),
            ("stop", stop.wait()),
        )
    }
    ended, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        task.cancel()
    await asyncio.wait(running, timeout=STOP_SECONDS)
    code = 0
    for task in ended:
        if task.get_name() != "stop":
            _log.error("%s ended: %r", task.get_name(), task.exception())
            code = 1
    try:
        await asyncio.wait_for(worker.app.stop(), STOP_SECONDS)
    except TimeoutError:
        _log.error("the group was not left within %s s", STOP_SECONDS)
        code = 1
    return code


async def _keep_running(worker: Any) -> None:
    """Run the Faust app; an error that it cannot recover from ends the process."""
    await worker.app.start()
    while not worker.app.should_stop:
        await asyncio.sleep(TICK_SECONDS)
        if worker.is_stalled():
            raise HeadraceError("records to read, but none come: the group or the fetcher hangs")
    raise HeadraceError(f"Faust gave up: {worker.app.crash_reason!r}")


async def _close_windows(worker: Any) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        try:
            await worker.see_ends()
        except Exception as error:  # noqa: BLE001 - the broker is away or the group rebalances
            _log.warning("windows stay open until the broker answers: %r", error)
            await asyncio.sleep(BEAT_SECONDS)
        else:
            await worker.close_windows()


async def _beat(worker: Any) -> None:
    while True:
        try:
            worker.beat()
        except OSError as error:  # a full disk must not end the work
            _log.warning("cannot write the heartbeat: %s", error)
        await asyncio.sleep(BEAT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
