"""The gateway process: its parts put together, its routes, its heartbeat, its clean end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts.audit import AuditChain
from contracts.clock import Clock, SystemClock
from contracts.codec import to_json
from contracts.errors import SettingsError
from contracts.heartbeat import beat
from contracts.ids import uuid7_ids
from contracts.settings import Settings, load_settings, policies_of, settings_for
from contracts.tracing import start_tracing
from guard.topics import topic_finder
from serving.breaker import Breakers
from serving.chat_endpoint import ChatEndpoint
from serving.chat_first import CHAT, ChatFirst
from serving.client_send import Server
from serving.decision_log import DecisionLog
from serving.feature_lookup import FeatureLookup, Reader, open_online_reader
from serving.feedback_endpoint import FeedbackEndpoint
from serving.gateway import Gateway
from serving.guarding import Guard
from serving.http_engine import HttpEngine
from serving.key_door import KeyDoor
from serving.metrics import CONTENT_TYPE, Metrics
from serving.outbox import Outbox
from serving.outbox_delivery import Delivery
from serving.overload import Load
from serving.request_head import BoundedHead
from serving.rollout_lease import Lease
from serving.rollout_state import RolloutFollower
from serving.rungs import RuleReply
from serving.shadow import Shadows
from serving.wire_errors import JSON, Refusal, error_body

PROCESS = "gateway"
BEAT_SECONDS = 1.0
DRAIN_SECONDS = 10
DELIVER_SECONDS = 5.0
SECRET_LENGTH = 16
SWITCH_SECONDS = 0.001  # requests wait no longer than this for the delivery and span threads

log = logging.getLogger("headrace.gateway")


class Running(Struct, frozen=True):
    """A gateway with the parts that run beside its requests."""

    gateway: Gateway
    outbox: Outbox
    delivery: Delivery
    followers: dict[str, RolloutFollower]

    def status(self) -> dict[str, object]:
        """Return what ``/healthz`` says; "degraded" still answers requests."""
        notes = [self.delivery.note, self.gateway.features.note, self.gateway.door.note]
        if self.gateway.log.losing:
            notes.append("outbox full: events of served requests are lost")
        notes += [follower.note for follower in self.followers.values()]
        skipped = self.gateway.breakers.open_versions()
        notes += [f"version {version[:12]} failed too often and is skipped" for version in skipped]
        return {
            "status": "degraded" if any(notes) else "ok",
            "notes": [note for note in notes if note],
            "undelivered": self.outbox.undelivered,
            "breakers_open": skipped,
        }

    def gauges(self) -> dict[str, float]:
        """Return the values of this moment for ``/metrics``."""
        return {
            "outbox_undelivered": self.outbox.undelivered,
            "outbox_bytes": self.outbox.bytes_on_disk,
            "outbox_refused": self.delivery.refused,
            "under_way": self.gateway.load.under_way,
            "overload_refused": self.gateway.load.refused,
            "expected_answer_seconds": self.gateway.load.expected(stream=False),
        }


def check_secret(settings: Settings) -> bytes:
    """Return the secret of feedback tokens; SettingsError when it is missing or short."""
    secret = settings.gateway.feedback_secret
    if len(secret) < SECRET_LENGTH:
        raise SettingsError(
            f"gateway.feedback_secret has {len(secret)} characters, allowed {SECRET_LENGTH} or "
            "more; set HEADRACE_GATEWAY__FEEDBACK_SECRET to a random text, e.g. from "
            "'openssl rand -hex 32', the same for every gateway"
        )
    return secret.encode()


def assemble(
    settings: Settings, open_reader: Callable[[Settings], Reader] = open_online_reader
) -> Running:
    """Make the parts; nothing is started and no server is asked yet."""
    secret = check_secret(settings)
    clock = SystemClock()
    new_id = uuid7_ids(clock, random.Random(os.urandom(32)))  # a system call per id costs the GIL
    metrics = Metrics()
    outbox = Outbox(settings.state_dir / "outbox", settings.gateway.outbox_max_bytes)
    followers = {policy: _follower(settings, policy, clock) for policy in policies_of(settings)}
    url = settings.engine.url or f"http://127.0.0.1:{settings.engine.port}"
    decisions = DecisionLog(outbox, AuditChain(PROCESS, clock, new_id), metrics)
    gateway = Gateway(
        settings=settings,
        secret=secret,
        clock=clock,
        new_id=new_id,
        engine=HttpEngine(url, settings.engine.timeout_seconds, settings.engine.key),
        rollout=lambda policy: followers[policy].current,
        topic_of=topic_finder(settings.streams.topics),
        features=FeatureLookup(settings, open_reader, clock),
        log=decisions,
        metrics=metrics,
        guard=Guard.of(settings),
        chat_room=asyncio.Semaphore(settings.gateway.max_concurrent),
        feedback_room=asyncio.Semaphore(settings.gateway.max_concurrent),
        load=Load(),
        door=KeyDoor(settings.gateway, clock),
        breakers=Breakers(settings.gateway, clock, _tell_breaker(decisions)),
        rule=RuleReply(settings.gateway),
    )
    return Running(
        gateway, outbox, Delivery(outbox, settings.kafka, "headrace-gateway-outbox"), followers
    )


def _follower(settings: Settings, policy: str, clock: Clock) -> RolloutFollower:
    path = settings.state_dir / "run" / f"rollout-{policy}.json"
    lease = Lease(clock, settings_for(settings, policy).rollout.lease_seconds)
    return RolloutFollower(settings.kafka, policy, "headrace-gateway-rollouts", path, lease)


def _tell_breaker(decisions: DecisionLog) -> Callable[[str, bool], None]:
    """Return what logs and audits that a version is skipped, or served again."""

    def tell(version: str, opened: bool) -> None:
        log.warning("version %s is %s", version[:12], "skipped" if opened else "served again")
        decisions.happened(f"breaker.{'opened' if opened else 'closed'}", version, {})

    return tell


def make_app(running: Running) -> ChatFirst:
    """Return the ASGI application; its lifespan starts and stops the parts."""

    shadows = Shadows()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for follower in running.followers.values():
            follower.start()
        running.delivery.start()
        running.gateway.features.start()
        heart = asyncio.create_task(_heartbeat(running))
        copies = asyncio.create_task(shadows.run(running.gateway))
        try:
            yield
        finally:
            heart.cancel()
            copies.cancel()
            await running.gateway.engine.close()
            await asyncio.to_thread(_stop, running)

    chat = ChatEndpoint(running.gateway, shadows)
    app = Starlette(
        routes=[
            Route(CHAT, chat, methods=["POST"]),
            Route("/v1/feedback", FeedbackEndpoint(running.gateway).post, methods=["POST"]),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/healthz", _health, methods=["GET"]),
            Route("/metrics", _metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _fault},
        lifespan=lifespan,
    )
    app.state.running, app.state.shadows = running, shadows
    return ChatFirst(chat, app, _fault)


def main() -> None:
    """Run the gateway of the settings until SIGTERM or SIGINT."""
    settings = load_settings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # we state outages ourselves, once
    sys.setswitchinterval(SWITCH_SECONDS)
    running = assemble(settings)
    tracing = start_tracing(
        PROCESS,
        otlp_endpoint=settings.tracing.otlp_endpoint or None,
        span_file=settings.state_dir / "spans" / f"{PROCESS}.jsonl",
    )
    config = uvicorn.Config(
        make_app(running),
        host=settings.gateway.host,
        port=settings.gateway.port,
        http=BoundedHead,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    # uvicorn raises the signal again after its clean end; the exit code is then 0, not the signal's
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    try:
        Server(config).run()
    finally:
        tracing.shutdown()


def _exit(*_: object) -> None:
    raise SystemExit(0)


async def _heartbeat(running: Running) -> None:
    """Beat and take in changed keys once a second; a full disk must end neither."""
    gateway, frozen = running.gateway, False
    while True:
        gateway.door.refresh()
        if not frozen and not gateway.features.note:
            _freeze()
            frozen = True
        try:
            _beat(running)
        except OSError as error:
            log.warning("cannot write the heartbeat: %s", error)
        await asyncio.sleep(BEAT_SECONDS)


def _beat(running: Running) -> None:
    gateway, undelivered = running.gateway, running.outbox.undelivered
    notes = running.status()["notes"]
    beat(
        gateway.settings.state_dir,
        PROCESS,
        gateway.clock,
        ready=True,
        lag=undelivered,
        counts={**gateway.metrics.counts, "undelivered": undelivered},
        note="; ".join(notes) if isinstance(notes, list) else "",
    )


def _freeze() -> None:
    """Leave what has been loaded out of garbage collections, which would stop all requests.

    The store's client is most of it; docs/gateway-cost.md has what a full collection cost.
    """
    gc.collect()
    gc.freeze()


def _stop(running: Running) -> None:
    running.gateway.features.stop()
    running.delivery.stop(DELIVER_SECONDS)
    running.outbox.close()
    for follower in running.followers.values():
        follower.stop()


async def _models(request: Request) -> Response:
    try:
        _running(request).gateway.door.identify(request.headers.get("authorization"))
    except Refusal as refusal:
        return refusal.response()
    policy = _running(request).gateway.settings.policy.name
    model = {"id": policy, "object": "model", "created": 0, "owned_by": "headrace"}
    return Response(to_json({"object": "list", "data": [model]}), media_type=JSON)


async def _health(request: Request) -> Response:
    return Response(to_json(_running(request).status()), media_type=JSON)


async def _metrics(request: Request) -> Response:
    running = _running(request)
    text = running.gateway.metrics.text(running.gauges(), running.gateway.breakers.open_versions())
    return Response(text, media_type=CONTENT_TYPE)


def _running(request: Request) -> Running:
    running: Running = request.app.state.running
    return running


def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = f"{getattr(error, 'detail', error)}; see /v1/chat/completions, /v1/feedback"
    return Response(to_json(error_body(status, message)), status, media_type=JSON)


def _fault(_: Request, error: Exception) -> Response:
    body = error_body(500, f"fault in the gateway ({type(error).__name__}); see its log")
    return Response(to_json(body), 500, media_type=JSON)
