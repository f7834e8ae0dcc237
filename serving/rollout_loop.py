"""The rollout loop: release by release, from verified files to full service or back.

A story in five parts: take in what was written, judge the rollout under way, obey people's
commands, keep the engine's adapters, begin the next release. Its whole state is the newest event on
topic `rollouts`: evidence and read positions are published in one event, so a controller killed at
any moment goes on with the same rollout and counts each event once. It knows no statistics
(`serving.rollout_trial`), no states but through `serving.rollout_transition`, and acts only while
it holds the term (`serving.rollout_term`).
"""

from __future__ import annotations

import logging

import msgspec
from kafka.errors import KafkaError
from msgspec.structs import replace

from contracts.broker import Received
from contracts.clock import Clock
from contracts.errors import HeadraceError, UnavailableError
from contracts.events import BASE_VERSION, Candidate, Release, Rollout, RolloutCommand
from contracts.ids import NewId
from contracts.settings import Settings
from contracts.tracing import span
from serving.gate import Gate, summary
from serving.rollout_adapters import Adapters, BrokenVersionError
from serving.rollout_admission import Admission
from serving.rollout_commands import AUDITED, Order, answered, obeyed, order_of
from serving.rollout_inbox import COMMANDS_PLACE, RELEASES_PLACE, Asked, Inbox, Pending
from serving.rollout_log import RolloutLog, event_or_none
from serving.rollout_plan import Identity, plan_hash
from serving.rollout_record import Act, RolloutRecord
from serving.rollout_standby import Standby
from serving.rollout_status import RolloutStatus
from serving.rollout_term import FencedError, Term
from serving.rollout_transition import begun, entered, refused, rolled_back, serving
from serving.rollout_trial import Trial
from serving.rollout_verdict import Verdict

POLL_SECONDS = 0.2
RETRY_SECONDS = 1.0
ENGINE_SECONDS = 3.0
COMMAND_SECONDS = 1.0
"""How often people's commands are looked for while the engine is waited for."""
REASON_CHARS = 2000
SIGNS_OF_LIFE = 3
"""States written within ``takeover_seconds``, at least, so that nobody takes over."""

_log = logging.getLogger("headrace.rollout")


class RolloutLoop:
    """Takes one policy's releases through the plan to promotion or back; call `run`."""

    def __init__(
        self,
        settings: Settings,
        log: RolloutLog,
        adapters: Adapters,
        status: RolloutStatus,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._settings = settings
        self._rules = settings.rollout
        self._policy = settings.policy.name
        self._log = log
        self._adapters = adapters
        adapters.meanwhile = self._meanwhile
        self._admission = Admission(adapters, Gate(settings, adapters, clock))
        self._status = status
        self._clock = clock
        self._new_id = new_id
        term = Term(log, log.writer, status.tally)
        self._record = RolloutRecord(self._policy, log, term, clock, new_id)
        self._standby = Standby(term, log, clock, self._rules.takeover_seconds)
        self._inbox = Inbox(self._policy)
        self._trial = Trial(settings, clock)
        self._beginning: Identity | None = None
        self._loading = ""
        self._engine_at: float | None = None
        self._listened_at: float | None = None

    @property
    def state(self) -> Rollout:
        """The state last published; only after the first successful step."""
        return self._record.state

    def run(self) -> None:
        """Work until the status says stop; what is not there yet is waited for, by name."""
        while not self._status.stopping.is_set():
            try:
                self.step()
            except FencedError as error:
                _log.warning("%s", error)
                self._record.drop()
                self._standby.enter()
            except (HeadraceError, KafkaError) as error:
                _log.warning("%s", error)
                self._status.waiting(str(error))
                self._status.stopping.wait(RETRY_SECONDS)

    def step(self) -> None:
        """Do one round; it may be called again after any error."""
        if self._standby.stays(self._policy):
            self._status.waiting(self._standby.note)
            self._status.stopping.wait(POLL_SECONDS)
            return
        if not self._record.claimed:
            self._resume()
        self._take_in()
        if self._trial.under_way:
            self._judge()  # first: harm does not wait for what a command waits for
        if self._inbox.command is not None:
            self._obey(self._inbox.command)
        self._publish_counts()
        self._status.working(self.state, self._log.lag(), self._describe())
        self._keep_adapters()
        pending = self._inbox.release
        if pending is not None and self._inbox.command is None and not self._waits():
            self._begin(pending)

    # --- resume ------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Claim the next term, and read on where the newest state has read to."""
        self._status.waiting("reading the last state from the broker")
        state = self._record.claim()
        under_way = state.candidate is not None
        asked = {RELEASES_PLACE: 0, COMMANDS_PLACE: 0}
        asked |= {name: state.positions[name] for name in asked if name in state.positions}
        self._inbox = Inbox(self._policy)
        try:
            self._log.open(asked | state.positions if under_way else asked)
            self._trial = Trial(self._settings, self._clock)
            if under_way:
                counted = self._log.between(state.first_positions, state.positions)
                self._trial.resume(state, counted)
        except BaseException:
            self._record.drop()  # or the next round would go on without what was counted
            raise

    # --- take in -----------------------------------------------------------------------------

    def _take_in(self, seconds: float = POLL_SECONDS) -> None:
        left: Received | None = None
        for record in self._log.poll(seconds):
            event = event_or_none(record)
            if event is None:
                where = f"{record.topic.name}/{record.partition} offset {record.offset}"
                _log.warning("%s is not a valid event; skipped", where)
            elif isinstance(event, Release):
                self._inbox.put_release(record, event, self.state)
            elif isinstance(event, RolloutCommand):
                if not self._inbox.put_command(record, event, self.state):
                    left = left or record
            else:
                self._trial.count(event)
        if left is not None:
            self._log.rewind(left)
        while self._inbox.superseded:
            release, by = self._inbox.superseded[0]
            self._log.audit(
                "release.superseded", release.version, f"newer release {by}", {"by": by}
            )
            self._inbox.superseded.popleft()

    # --- judge -------------------------------------------------------------------------------

    def _judge(self) -> None:
        verdict = self._trial.verdict(self.state)
        if verdict.action == "continue" or not (verdict.at_once or self._log.caught_up()):
            return
        self._conclude(verdict)

    def _conclude(self, verdict: Verdict) -> None:
        state, now, reason = self._counted(), self._clock.now(), verdict.reason
        candidate = state.candidate
        assert candidate is not None, "a rollout under way has a candidate"
        match verdict.action:
            case "promote":
                action, after = "promoted", serving(state, candidate, forward=True, reason=reason)
            case "advance":
                action, after = "advanced", entered(state, state.step + 1, self._rules, now, reason)
            case "hold":
                action, after = "held", replace(state, held=True, held_at=now, reason=reason)
            case "pause":
                action, after = "paused", replace(state, paused=reason)
            case _:
                action, after = "rolled-back", rolled_back(state, self._rules, now, reason)
        with span(
            f"rollout.{action}", links=[self._record.trace], attributes=self._attributes(state)
        ):
            detail = {"evidence": msgspec.to_builtins(state.evidence)}
            self._act(Act(action, candidate, reason, detail), after)

    # --- obey --------------------------------------------------------------------------------

    def _obey(self, asked: Asked) -> None:
        """Do what a person asked, or say why not; the state then has read past the command."""
        command, state = asked.command, self._counted()
        pending = self._inbox.release
        order = order_of(command, state, pending.candidate if pending else None)
        with span("rollout.command", links=[asked.trace], attributes=self._attributes(state)):
            if order.target is not None:
                refusal = self._load_asked(asked, order.target)
                order = Order(refusal=refusal[:REASON_CHARS]) if refusal else order
                state = self._counted()  # evidence came while the engine was waited for
            detail: dict[str, object] = {"command_id": command.id, "operator": command.operator}
            if order.refusal:
                after = answered(state, command, order.refusal)
                action, reason = "command-refused", f"{command.action}: {order.refusal}"
            else:
                after = obeyed(command, order, state, self._rules, self._clock.now())
                action, reason = AUDITED[command.action], command.reason
            about = order.target or state.candidate or state.stable
            if order.target is not None and command.action != "rollback":
                detail |= self._admission.found(order.target)
            self._act(Act(action, about, reason, detail), after, asked)

    def _load_asked(self, asked: Asked, target: Candidate) -> str:
        """Have the engine take the version a person asked for; return why it cannot be served.

        It is tried again while the engine is slow or away, until another command comes: that may be
        a rollback, which needs no engine.
        """
        command = asked.command
        again, self._loading = self._loading == command.id, command.id
        if again and self._inbox.overtaken:
            return (
                f"the engine did not take {target.version[:12]} before another command came; "
                "ask again when the engine is well"
            )
        self._status.waiting(f"loading {target.version[:12]} for {command.operator}")
        self._listened_at = self._clock.monotonic()
        try:
            return self._admission.load(target, self._needed())
        finally:
            self._listened_at = None

    # --- engine ------------------------------------------------------------------------------

    def _keep_adapters(self) -> None:
        """Have the engine load what it forgot, every few seconds."""
        now = self._clock.monotonic()
        if self._engine_at is not None and now - self._engine_at < ENGINE_SECONDS:
            return
        self._record.check_term()  # two controllers would swap full weights back and forth
        self._listened_at = now
        try:
            for version in self._adapters.ensure(self._needed()):
                _log.info("the engine had lost %s; loaded again", version)
        except BrokenVersionError as error:
            self._cannot_serve(error)
        finally:
            self._listened_at = None
        self._engine_at = now

    def _meanwhile(self) -> None:
        """Show life while the engine works; a command comes before a release or a lost adapter.

        Harm of the canary under way comes before both. What is interrupted is taken up again after
        it, from the beginning, unless a command forbids that.
        """
        self._show_life()
        since = None if self._adapters.swapping else self._listened_at
        if since is not None and self._clock.monotonic() - since >= COMMAND_SECONDS:
            self._listened_at = self._clock.monotonic()
            if self._hears_of_command():
                raise UnavailableError("a person's command comes before what the engine is slow at")
            if self._trial.under_way and self._trial.verdict(self.state).at_once:
                raise UnavailableError("a verdict comes before what the engine is slow at")

    def _hears_of_command(self) -> bool:
        """Look for new commands and, with a rollout under way, count what was written meanwhile."""
        if not self._trial.under_way:
            return self._log.command_waits()
        before = self._inbox.waiting
        self._take_in(seconds=0.0)
        return self._inbox.waiting > before or self._log.command_waits()

    def _cannot_serve(self, error: BrokenVersionError) -> None:
        """A broken candidate is rolled back; a broken stable version needs a person."""
        candidate = self.state.candidate
        if candidate is None or candidate.version != error.version:
            raise error
        self._conclude(Verdict("roll-back", str(error)[:REASON_CHARS]))

    def _needed(self) -> tuple[Candidate, ...]:
        found = (self.state.stable, self.state.candidate)
        return tuple(candidate for candidate in found if candidate is not None)

    # --- begin -------------------------------------------------------------------------------

    def _waits(self) -> str:
        """Return why no release may begin, "" when one may."""
        state = self.state
        if state.candidate is not None:
            return f"{state.candidate.version[:12]} is under way"
        if state.pinned:
            return f"{state.stable.version[:12]} is pinned"
        if state.paused:
            return f"paused: {state.paused}"
        if state.cooldown_until is not None and self._clock.now() < state.cooldown_until:
            return f"after a rollback no release is taken until {state.cooldown_until:%H:%M:%S}"
        return ""

    def _begin(self, pending: Pending) -> None:
        candidate = pending.candidate
        attributes = self._attributes(replace(self.state, candidate=candidate))
        with span("rollout.begin", links=[pending.trace], attributes=attributes):
            refusal = self._admit(candidate)
            if refusal:
                reason = refusal[:REASON_CHARS]  # it may quote a file or the engine at any length
                after = refused(self.state, candidate, reason)
                self._act(Act("refused", candidate, reason), after, pending)
            else:
                self._start(pending)

    def _admit(self, candidate: Candidate) -> str:
        """Return why no user may meet this version, "" when they may."""
        if candidate.version == BASE_VERSION:
            return "the base model is no version, and nobody signed it; rollout rollback serves it"
        if candidate.form == "full":
            return "full weights take the whole engine: a person serves them, by rollout promote"
        if self.state.stable.form == "full":
            return "full weights serve everybody, and no adapter fits beside them: roll back first"
        self._status.waiting(f"loading and warming up {candidate.version[:12]}")
        self._listened_at = self._clock.monotonic()
        try:
            return self._admission.load(candidate, self._needed()) or self._gate(candidate)
        finally:
            self._listened_at = None

    def _gate(self, candidate: Candidate) -> str:
        """Have the gate look at a version that the engine has; its report goes into the audit."""
        self._status.waiting(f"the gate looks at {candidate.version[:12]}")
        report = self._admission.examine(candidate, self.state.stable)
        if report is None:
            return ""
        reasons = "; ".join(report.reasons)
        action = "gate.refused" if report.refused else "gate.passed"
        self._record.note(action, candidate, reasons[:REASON_CHARS], summary(report))
        return f"gate: {reasons}" if report.refused else ""

    def _start(self, pending: Pending) -> None:
        who = self._identity(pending.candidate)
        plan, now = plan_hash(who, self._settings), self._clock.now()
        first = self._inbox.places(self._log.positions(), pending)
        after = entered(begun(self.state, who, plan, first, now), 0, self._rules, now)
        rules = msgspec.to_builtins(self._rules)
        detail = {"rules": rules, "salt": who.salt, "gate_mode": self._settings.gate.mode}
        self._act(Act("started", pending.candidate, "", detail), after, pending)
        self._beginning = None

    def _identity(self, candidate: Candidate) -> Identity:
        """Return who meets whom under which id and salt, the same until the start is published.

        Its audit record may have been written by a try that failed; the plan that it gives is the
        plan of the rollout.
        """
        stable, known = self.state.stable, self._beginning
        if known is None or (known.stable, known.candidate) != (stable, candidate):
            new_id, salt = self._new_id(), self._new_id()
            known = Identity(rollout_id=new_id, salt=salt, stable=stable, candidate=candidate)
        self._beginning = known
        return known

    # --- write -------------------------------------------------------------------------------

    def _act(self, act: Act, after: Rollout, done: Pending | Asked | None = None) -> None:
        """Audit a step and publish the state after it; what is ``done`` lies behind it then."""
        places = self._inbox.places(self._log.positions(), done)
        self._record.act(act, replace(after, positions=places))
        if done is not None:
            self._inbox.drop(done, self.state)
        self._trial.follow(self.state)

    def _publish_counts(self) -> None:
        """Publish what was counted from time to time, and that this controller lives."""
        changed = self._counted().evidence != self.state.evidence
        if changed and self._record.quiet_seconds >= self._rules.publish_seconds:
            self._publish()
        self._show_life()

    def _show_life(self) -> None:
        """Publish the state again after a third of the silence that has another take over.

        The engine may be waited for longer than that, most of all at the gate.
        """
        wait = self._rules.takeover_seconds / SIGNS_OF_LIFE
        if self._record.claimed and self._record.quiet_seconds >= wait:
            self._publish()

    def _publish(self) -> None:
        places = self._inbox.places(self._log.positions())
        self._record.write(replace(self._counted(), positions=places))

    def _counted(self) -> Rollout:
        """Return the state with the newest evidence."""
        return self._trial.counted(self.state)

    def _attributes(self, state: Rollout) -> dict[str, str | int]:
        return {
            "headrace.policy": self._policy,
            "headrace.policy_version": (state.candidate or state.stable).version,
            "headrace.epoch": state.epoch,
        }

    def _describe(self) -> str:
        state = self._counted()
        if state.candidate is None:
            wait = self._waits() or "waiting for a release"
            return f"serving {state.stable.version[:12]}, {wait}"
        share = f"{state.weight:.0%}" if state.weight else f"shadow {state.shadow_share:.0%}"
        verdict = self._trial.verdict(state)
        return f"canary {state.candidate.version[:12]} at {share}: {verdict.reason}"
