"""A drill from its beginning to its end: users ask, bad versions come, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

from msgspec.structs import replace

from console.drill_injection import Drill, Options, door_of, inject, make
from console.drill_kinds import KINDS
from console.drill_report import DrillReport
from console.drill_users import users_at_work
from console.drill_watch import Watch
from console.rollout_view import read_state
from console.stack import kept_signing_key
from console.stack_file import read_stack, supervisor_runs
from console.waiting import Shown
from contracts.audit import AuditChain
from contracts.broker import make_producer, send_and_wait
from contracts.clock import SystemClock
from contracts.codec import encode
from contracts.errors import UnavailableError
from contracts.settings import Settings
from contracts.topics import AUDIT

FIRST_ANSWER_SECONDS = 120.0
SOURCE = "headrace/console"


def attached(settings: Settings) -> Settings:
    """Return the settings with the addresses and the model of the stack that runs.

    UnavailableError when none does.
    """
    stack = read_stack(settings.state_dir)
    if stack is None or not supervisor_runs(stack) or stack.phase != "running":
        raise UnavailableError(
            f"no stack runs in {settings.state_dir}; a drill needs one: 'headrace up', "
            "or 'headrace demo --keep'"
        )
    address = urlsplit(stack.gateway)
    return replace(
        settings,
        state_dir=settings.state_dir.absolute(),
        data_dir=settings.data_dir.absolute(),
        kafka=replace(settings.kafka, bootstrap=stack.kafka),
        engine=replace(settings.engine, url=stack.engine),
        gateway=replace(
            settings.gateway, host=address.hostname or "127.0.0.1", port=address.port or 0
        ),
        policy=replace(settings.policy, model=stack.model or settings.policy.model),
        learner=replace(
            settings.learner,
            signing_key_file=settings.learner.signing_key_file
            or str(kept_signing_key(settings.state_dir.absolute())),
        ),
    )


def run_drill(given: Settings, options: Options, shown: Shown) -> DrillReport:
    """Inject every variant of the kind, one after the other, and report.

    Raises UnavailableError or DeadlineError when the drill itself cannot be done; the stack is
    left as it was found.
    """
    settings, kind = attached(given), KINDS[options.kind]
    options = replace(options, skip_gate=options.skip_gate or bool(kind.fault))
    if kind.fault:
        door_of(settings).check()
    if options.skip_gate and settings.gate.mode == "enforce" and not settings.gate.allow_drills:
        raise UnavailableError(
            "the gate would refuse this version before the canary can show what it does; set "
            "gate.allow_drills to true in the settings and start the stack again"
        )
    clock = SystemClock()
    directory = settings.state_dir / "drills" / f"{clock.now():%Y%m%d-%H%M%S}-{kind.name}"
    watch = Watch(settings.kafka, settings.policy.name)
    try:
        watch.state = read_state(settings.kafka, settings.policy.name)
        with users_at_work(settings, options.load, directory) as users:
            drill = Drill(settings, options, watch, users, shown)
            shown.say(f"drill {kind.name}: {kind.what}; files: {directory}")
            drill.until("the first answers", lambda: bool(users.lines()), FIRST_ANSWER_SECONDS)
            with _audited(drill):
                versions = make(drill, directory)
                rows = tuple(map(partial(inject, drill), versions, kind.variants))
        lines = users.lines()
    finally:
        watch.close()
    return DrillReport(
        kind=kind.name,
        what=kind.what,
        seed=options.load.seed,
        skip_gate=options.skip_gate,
        asked=len(lines),
        failed_requests=sum(line.failed for line in lines),
        rows=rows,
    )


@contextmanager
def _audited(drill: Drill) -> Iterator[None]:
    """Write into the audit that a drill begins and ends: what it does must not look like harm."""
    chain = AuditChain("drill", drill.clock, drill.new_id)
    producer = make_producer(drill.settings.kafka, "headrace-drill")

    def write(action: str) -> None:
        detail = {"kind": drill.kind.name, "skip_gate": drill.options.skip_gate}
        record = chain.record(action, drill.settings.policy.name, detail=detail)
        send_and_wait(producer, drill.settings.kafka, encode(AUDIT, record, source=SOURCE))

    write("drill.started")
    try:
        yield
    finally:
        try:
            write("drill.ended")
        finally:
            producer.close(timeout=1.0)
