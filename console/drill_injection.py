"""One bad version of a drill: made, spoiled, released, and watched until the controller is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from console.drill_faults import FaultDoor
from console.drill_kinds import KINDS, DrillKind, Kind, Variant, fault_of
from console.drill_report import DrillRow, stopped_by
from console.drill_users import Load, Users
from console.drill_version import Made, announce, make_versions, spoil
from console.drill_watch import Watch
from console.rollout_request import ask, make_command
from console.stack import ADMIN_KEY_FILE, kept_secret
from console.waiting import Shown
from contracts.clock import SystemClock
from contracts.errors import DeadlineError, UnavailableError
from contracts.events import BASE_VERSION, Candidate
from contracts.ids import uuid7_ids
from contracts.settings import Settings

FOLLOW_SECONDS = 0.3
LOGGED_SECONDS = 30.0
UNDO_SECONDS = 60.0
MOST_ANNOUNCEMENTS = 5
OPERATOR = "headrace drill"


class Options(Struct, frozen=True, kw_only=True):
    """The command line; ``seconds`` bound the wait for the end of each version."""

    kind: Kind
    load: Load
    seconds: float
    skip_gate: bool = False


class Drill:
    """What the steps of one drill share."""

    def __init__(
        self, settings: Settings, options: Options, watch: Watch, users: Users, shown: Shown
    ) -> None:
        self.settings = settings
        self.options = options
        self.kind: DrillKind = KINDS[options.kind]
        self.watch = watch
        self.users = users
        self.shown = shown
        self.clock = SystemClock()
        self.new_id = uuid7_ids(self.clock)

    def until(self, what: str, over: Callable[[], bool], seconds: float) -> None:
        """Follow the log until ``over()``; DeadlineError with ``what`` after ``seconds``."""
        began = time.monotonic()
        self.shown.begin()
        while not over():
            elapsed = time.monotonic() - began
            if elapsed > seconds:
                raise DeadlineError(f"{what}: not within {seconds:.0f} s; {self.describe()}")
            self.users.check()
            self.shown.waiting(f"  {what} ({elapsed:.0f} s): {self.describe()}")
            self.watch.follow(FOLLOW_SECONDS)

    def describe(self) -> str:
        """Say where the rollout stands."""
        state, reached = self.watch.state, self.watch.reached()
        if state is None:
            return "no rollout controller has written a state yet"
        counts = ", ".join(f"{arm} {n}" for arm, n in state.evidence.requests.items())
        words = f"{state.phase} step {state.step} at {state.weight:.1%}; counted: {counts or '-'}"
        return f"{words}; {reached.users} users reached, {reached.shadow} shadow answers"


def door_of(settings: Settings) -> FaultDoor:
    """Return the door of the stack's engine, opened by the key that the stack keeps."""
    key = settings.engine.admin_key or kept_secret(settings.state_dir, ADMIN_KEY_FILE)
    return FaultDoor(settings.engine.url, key)


def make(drill: Drill, directory: Path) -> list[Made]:
    """Make the drill's versions from the one in service; files of the making: ``directory``."""
    drill.shown.say("making the version")
    options = drill.options
    return make_versions(
        drill.settings,
        drill.kind,
        _stable(drill),
        directory,
        seed=options.load.seed,
        skip_gate=options.skip_gate,
    )


def _stable(drill: Drill) -> Candidate:
    state = drill.watch.state
    return state.stable if state is not None else Candidate(version=BASE_VERSION)


def inject(drill: Drill, made: Made, variant: Variant) -> DrillRow:
    """Spoil a version, release it, and wait until the controller is done with it."""
    options, watch = drill.options, drill.watch
    spoil(Path(made.directory), variant)
    drill.until("the controller to be free", lambda: _is_free(drill), options.seconds)
    stable = _stable(drill)
    watch.about(made.version)
    released_at, before = drill.clock.now(), len(drill.users.lines())
    try:
        with _fault(drill, made.version) as at_the_door:
            _release(drill, made, stable, at_the_door)
    finally:
        if watch.ending is None or watch.ending.ended == "promoted":
            _undo(drill, stable)
    with suppress(DeadlineError):  # the counts then say what was seen by now
        drill.until("the decisions in the log", lambda: _all_logged(drill), LOGGED_SECONDS)
    row = _row(drill, variant, made.version, released_at)
    lines = drill.users.lines()[before:]
    failed = sum(line.failed for line in lines)
    drill.shown.say(f"  {made.version[:12]} {row.ended} by {row.by or '-'}: {row.reason}")
    return replace(row, asked=len(lines), failed_requests=failed)


def _is_free(drill: Drill) -> bool:
    """Whether a release would be taken at once; UnavailableError when a person said no."""
    state = drill.watch.state
    if state is None:
        return False
    if state.pinned or state.paused:
        raise UnavailableError(
            f"the rollout of {state.policy} is {'pinned' if state.pinned else 'paused'} "
            f"{state.paused}; a drill would wait for ever: unpin or resume it first"
        )
    cooling = state.cooldown_until is not None and state.cooldown_until > drill.clock.now()
    return state.candidate is None and not cooling


@contextmanager
def _fault(drill: Drill, version: str) -> Iterator[Callable[[], None]]:
    """Give a function that makes the version slow or failing, once; the end undoes it."""
    limit = drill.settings.rollout.first_token_limit_seconds
    fault = fault_of(drill.kind, version, limit)
    caused = False

    def cause() -> None:
        nonlocal caused
        if fault and not caused:
            door_of(drill.settings).cause(fault)
            caused = True

    try:
        yield cause
    finally:
        if caused:
            door_of(drill.settings).clear(version)


def _release(drill: Drill, made: Made, stable: Candidate, at_the_door: Callable[[], None]) -> None:
    """Announce the version, again when the learner's next release came before it."""
    watch, announced = drill.watch, 0

    def over() -> bool:
        nonlocal announced
        if watch.under_way():
            at_the_door()
        if announced == 0 or (watch.superseded and announced < MOST_ANNOUNCEMENTS):
            watch.superseded = False
            announce(drill.settings, made, stable, drill.clock.now(), drill.new_id)
            announced += 1
        return watch.ending is not None

    with suppress(DeadlineError):  # then it is undone, and the report says that nothing was decided
        drill.until("the end of the bad version", over, drill.options.seconds)


def _undo(drill: Drill, stable: Candidate) -> None:
    """Ask the controller to go back to what served before.

    The version is named: without one, a controller that has not begun would go back further.
    """
    policy = drill.settings.policy.name
    command = make_command(
        policy, "rollback", stable.version, reason="the end of a drill", operator=OPERATOR
    )
    answer = ask(drill.settings.kafka, command, UNDO_SECONDS)
    drill.shown.say(f"  the drill asked to go back: {answer.outcome} {answer.reason}")


def _all_logged(drill: Drill) -> bool:
    """Whether each answered question's decision was read, so that the counts are whole."""
    answered = {line.decision_id for line in drill.users.lines() if not line.failed}
    return drill.watch.has_read(answered)


def _row(drill: Drill, variant: Variant, version: str, released_at: datetime) -> DrillRow:
    watch, ending = drill.watch, drill.watch.ending
    reached = watch.reached()
    ended, reason = (ending.ended, ending.reason) if ending else ("undecided", "")
    end = ending.at if ending else drill.clock.now()
    return DrillRow(
        kind=drill.kind.name,
        variant=variant,
        version=version,
        ended=ended,
        by=stopped_by(ended, reason),
        reason=reason,
        users_exposed=reached.users,
        answers=reached.answers,
        kept_back_answers=reached.kept_back,
        shadow_answers=reached.shadow,
        replaced_answers=reached.replaced,
        requests=reached.requests,
        seconds=(end - released_at).total_seconds(),
        exposed_seconds=(end - watch.exposed_at).total_seconds() if watch.exposed_at else 0.0,
    )
