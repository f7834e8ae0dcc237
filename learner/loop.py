"""The learner's story: resume, read samples, learn a micro-batch, commit, release, go on.

Told top down: `run` is the whole of it. It knows Kafka only through `contracts.broker`, the policy
only through `learner.update` and its neighbours.
"""

from __future__ import annotations

import logging
import time
from collections import ChainMap
from threading import Event as Flag
from traceback import format_tb

import torch
from kafka.errors import KafkaError
from msgspec import Struct
from msgspec.structs import replace

from contracts.broker import Reader, Received
from contracts.clock import Clock
from contracts.codec import trace_headers
from contracts.errors import CodecError, DeadlineError, UnavailableError
from contracts.events import Preference, Sample
from contracts.evidence import read_evidence
from contracts.ids import NewId
from contracts.judges import is_judge
from contracts.manifest import file_sha256
from contracts.settings import Settings
from contracts.signing import signing_key
from contracts.topics import RELEASES, SAMPLES
from contracts.tracing import current_trace_headers, span
from learner import checkpoint
from learner.adapters import load_policy
from learner.assistant_turn import correction_ids
from learner.directory import CrashPoint, no_crash
from learner.evaluation import release_evidence
from learner.experience import Experience, experience_of
from learner.following import lead
from learner.imputation import impute
from learner.ledger import SUPERSEDED, UNTAUGHT, WITHDRAWN
from learner.outlet import Outlet, Output
from learner.practice import read_practice
from learner.progress import (
    Progress,
    advance,
    release_is_due,
    released,
)
from learner.publish import Published, publish, release_event
from learner.pulse import Pulse
from learner.ranks import ALONE, Ranks
from learner.reward_model import named_reward_model
from learner.update import TrainState, new_train_state
from learner.user_features import RewardMeans
from learner.version_state import keep_state, published_before

CONNECT_SECONDS = 300.0
POLL_SECONDS = 0.5
_PLACE = f"{SAMPLES.name}/0"
_log = logging.getLogger("learner")


class Arrival(Struct, frozen=True):
    """A new sample and the trace it belongs to; ``withdrawn``: its decision has no reward now."""

    experience: Experience
    trace: dict[str, str]
    withdrawn: bool = False


class Learner:
    """One run of the learner; a restart makes a new one from the last checkpoint."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        outlet: Output,
        pulse: Pulse,
        reward_means: RewardMeans,
        crash_point: CrashPoint = no_crash,
        ranks: Ranks = ALONE,
    ) -> None:
        torch.set_num_threads(settings.learner.threads)
        self.settings = settings
        self.clock = clock
        self.outlet = outlet
        self.pulse = pulse
        self.reward_means = reward_means
        self.crash_point = crash_point
        self.root = settings.state_dir / "checkpoints" / settings.policy.name
        signing_key(settings)  # a missing key is told at the start, not at the first version
        self.train: TrainState = new_train_state(load_policy(settings, ranks), settings.learner)
        self.train.practice = read_practice(settings, self.train.policy.tokenizer)
        self.progress = checkpoint.restore(self.root, self.train) or Progress(
            policy=settings.policy.name, base=self.train.policy.base
        )
        lead(self.train, self.progress)
        self.reward_model = named_reward_model(settings)
        self.pending: list[Arrival] = []
        self.judged: list[Arrival] = []
        self.superseded: list[tuple[Arrival, str]] = []
        self.unrewarded: list[Arrival] = []
        self.preferences = 0
        self.duplicates = 0
        self.others = 0
        self.dead_letters = 0
        self._seen = set(self.progress.seen)
        self.served: dict[str, int] = {}
        """Numbers of versions of another line, whose answers count like those of its own."""

    def take(self, record: Received) -> None:
        """Take in one record of `samples`; learn when it fills a micro-batch.

        What cannot become an experience is put aside, so that the log goes on behind it.
        """
        try:
            arrival = self._arrival(record)
        except CodecError as error:
            self._put_aside(record, error)
            return
        except Exception as error:  # noqa: BLE001 - edge of the process: read again, it fails again
            # Where it arose, not its message: that may quote what people wrote.
            frames = "".join(format_tb(error.__traceback__))
            _log.error("offset %d failed: %s\n%s", record.offset, type(error).__name__, frames)
            self._put_aside(record, CodecError("failed", repr(error)))
            return
        if arrival is not None:
            self._sort_in(arrival)

    def _sort_in(self, arrival: Arrival) -> None:
        """Put a sample where it belongs; learn when the micro-batch is full."""
        self._seen.add(arrival.experience.sample_id)
        censored = arrival.experience.censored and not arrival.withdrawn
        if censored and self._is_known(arrival.experience.decision_id):
            self.superseded.append((arrival, SUPERSEDED))
            return
        self._supersede(arrival.experience.decision_id)
        if arrival.withdrawn:
            self.superseded.append((arrival, WITHDRAWN))
            return
        if censored:
            self.unrewarded.append(arrival)
            return
        policy = self.settings.policy
        if is_judge(policy.name, arrival.experience.user_id, policy.judge_share):
            self.judged.append(arrival)
            return
        self.pending.append(arrival)
        if len(self.pending) == self.settings.learner.batch_samples:
            self.learn()

    def _is_known(self, decision_id: str) -> bool:
        """Tell whether a decision has a reward or taught: a sample without one changes nothing."""
        waiting = (arrival.experience.decision_id for arrival in (*self.pending, *self.judged))
        return decision_id in self.progress.taught or decision_id in waiting

    def _supersede(self, decision_id: str) -> None:
        """Put aside what was read of a decision and not learned yet: a newer sample holds."""
        for batch in (self.pending, self.judged, self.unrewarded):
            for place, arrival in enumerate(batch):
                if arrival.experience.decision_id == decision_id:
                    self.superseded.append((batch.pop(place), SUPERSEDED))
                    break

    def _arrival(self, record: Received) -> Arrival | None:
        """Return what a record brings, None for a sample seen before or of another policy.

        Preferences are for losses over pairs; what they correct is in the samples, too.
        """
        sample = record.event()
        if isinstance(sample, Preference):
            self.preferences += 1
            return None
        assert isinstance(sample, Sample)
        if sample.assignment.policy != self.settings.policy.name:
            self.others += 1
            return None
        if sample.id in self._seen:
            self.duplicates += 1
            return None
        tokenizer = self.train.policy.tokenizer
        correction = correction_ids(tokenizer, sample.correction) if sample.correction else ()
        experience = experience_of(
            sample,
            offset=record.offset,
            sequences=ChainMap(self.progress.versions, self.served),
            correction_ids=correction,
        )
        return Arrival(experience, trace_headers(record.headers), sample.withdrawn)

    def _put_aside(self, record: Received, error: CodecError) -> None:
        _log.warning("offset %d gives no sample: %s", record.offset, error.reason)
        self.dead_letters += 1
        self.outlet.dead_letter(record, error)

    def learn(self) -> None:
        """Learn from the pending micro-batch, commit it, and release when it is time."""
        traces = [arrival.trace for arrival in self.pending if arrival.trace]
        attributes = {
            "headrace.batch": self.progress.batches,
            "headrace.offset.first": self.pending[0].experience.offset,
            "headrace.offset.next": self.pending[-1].experience.offset + 1,
        }
        with span("learn batch", links=traces, attributes=attributes):
            began = self.clock.monotonic()
            unrewarded = impute(
                [arrival.experience for arrival in self.unrewarded],
                self.reward_model,
                self.settings,
            )
            count = len(self.pending)
            known = self._with_features([*(one.experience for one in self.pending), *unrewarded])
            fresh, unrewarded = known[:count], known[count:]
            judged = [arrival.experience for arrival in self.judged]
            superseded = [(arrival.experience, why) for arrival, why in self.superseded]
            self.progress = advance(
                self.train, self.progress, fresh, self.settings, judged, superseded, unrewarded
            )
            checkpoint.save(
                self.root,
                self.train,
                self.progress,
                self.settings.learner.keep_checkpoints,
                self.crash_point,
            )
            self._seen = set(self.progress.seen)
            self._trace_samples()
            self._tell(len(fresh), self.clock.monotonic() - began)
            self._clear()
            self.release_if_due()

    def rewind(self) -> None:
        """Forget what was read since the last commit; it will be read again."""
        self._clear()
        self._seen = set(self.progress.seen)

    def _clear(self) -> None:
        self.pending.clear()
        self.judged.clear()
        self.superseded.clear()
        self.unrewarded.clear()

    def resume(self) -> None:
        """Say where this run goes on from, and finish a release that a crash cut off."""
        self.outlet.audit(
            "learner.started",
            self.progress.policy,
            {
                "base": self.progress.base,
                "batches": self.progress.batches,
                "next_offset": self.progress.next_offset,
                "releases": len(self.progress.versions),
            },
        )
        _log.info(
            "starting at batch %d, offset %d", self.progress.batches, self.progress.next_offset
        )
        saved = checkpoint.place(self.root, self.progress)
        if saved.is_dir() and (cut_off := published_before(self.settings, saved)) is not None:
            self._release(cut_off)
        else:
            self.release_if_due()

    def tell_what_is_lost(self, begins: int) -> None:
        """Say so when the broker has removed samples that were never read: ``begins`` is the next
        offset there is."""
        following = self.progress.next_offset
        if self.progress.batches == 0 or begins <= following:
            return
        _log.error("offsets %d to %d are gone from the log, unread", following, begins - 1)
        detail = {"first_offset": following, "next_offset": begins}
        reason = f"retention removed them; set a longer retention.ms for {SAMPLES.name}"
        self.outlet.audit("samples.lost", self.progress.policy, detail, reason)

    def release_if_due(self) -> None:
        """Publish and announce the next version when enough batches were learned.

        The checkpoint does not yet know of the release, so a crash anywhere in here makes the same
        version and the same announcement again.
        """
        if release_is_due(self.progress, self.settings.learner.publish_every):
            self._release(self._publish())

    def _publish(self) -> Published:
        state = file_sha256(checkpoint.place(self.root, self.progress) / checkpoint.STATE)
        evidence = release_evidence(
            self.train.policy, self.progress, self.settings, self.reward_model
        )
        policy, progress = self.train.policy, self.progress
        return publish(self.settings, policy, progress, evidence, self.crash_point, state=state)

    def _release(self, published: Published) -> None:
        """Keep the version's state, announce it and take it for the parent of the next one."""
        saved = checkpoint.place(self.root, self.progress)
        keep_state(self.settings, saved, published.version, self.progress, self.crash_point)
        self.crash_point("before-announce")
        evidence = read_evidence(published.directory)
        event = release_event(self.settings, published, self.progress, self.clock)
        self.outlet.send(RELEASES, event)
        self.outlet.audit(
            "version.released",
            published.version,
            {
                "sequence": event.sequence,
                "parent": event.parent,
                "samples": published.manifest.samples,
                "judged": evidence.samples if evidence else 0,
                "first_offset": self.progress.first_offset,
                "next_offset": self.progress.next_offset,
            },
        )
        self.progress = released(self.progress, published.version)
        self.crash_point("after-announce")
        _log.info("release %d: version %s", event.sequence, published.version[:12])

    def show(self, lag: int | None) -> None:
        """Say in the heartbeat how things stand, and to other processes that this one is there."""
        self.train.policy.ranks.keep_alive()
        self.pulse.lag = lag
        self.pulse.counts = {
            "samples": self.progress.samples,
            "batches": self.progress.batches,
            "releases": len(self.progress.versions),
            "revised": self.progress.revised,
            "dropped": self.progress.dropped,
            "judged": self.progress.judged + len(self.judged),
            "superseded": self.progress.superseded + len(self.superseded),
            "imputed": self.progress.imputed,
            "unrewarded": self.progress.unrewarded + len(self.unrewarded),
            "duplicates": self.duplicates,
            "preferences": self.preferences,
            "others": self.others,
            "dead_letters": self.dead_letters,
        }
        self.pulse.note = f"{len(self.pending)} of {self.settings.learner.batch_samples} samples"

    def _with_features(self, fresh: list[Experience]) -> list[Experience]:
        """Look up what the gateway did not log: then serving and learning see the same values."""
        unknown = [one for one in fresh if not (one.features_logged or _teaches_nothing(one))]
        if not unknown:
            return fresh
        means = dict(zip((e.sample_id for e in unknown), self.reward_means(unknown), strict=True))
        return [
            replace(one, user_reward_mean=means[one.sample_id]) if one.sample_id in means else one
            for one in fresh
        ]

    def _trace_samples(self) -> None:
        """End each sample's own trace with a span that says which release has it."""
        batch = [current_trace_headers()]
        outcomes = {outcome.sample_id: outcome.outcome for outcome in self.progress.ledger}
        for arrival in self._read():
            sample_id = arrival.experience.sample_id
            attributes: dict[str, str | int] = {
                "headrace.sample.id": sample_id,
                "headrace.decision.id": arrival.experience.decision_id,
                "headrace.version.sequence": self.progress.sequence,
                "headrace.outcome": outcomes[sample_id],
            }
            if arrival.trace:
                with span("learn", parent=arrival.trace, links=batch, attributes=attributes):
                    pass

    def _read(self) -> tuple[Arrival, ...]:
        """Return everything read since the last commit."""
        superseded = (one for one, _ in self.superseded)
        return (*self.pending, *self.judged, *superseded, *self.unrewarded)

    def _tell(self, count: int, seconds: float) -> None:
        stats, progress = self.progress.stats, self.progress
        arrivals = self._read()
        known = sum(
            1
            for one in progress.ledger[-len(arrivals) :]
            if one.user_reward_mean is not None and one.outcome not in UNTAUGHT
        )
        first = min(arrival.experience.offset for arrival in arrivals)
        following = progress.next_offset
        self.outlet.audit(
            "batch.learned",
            f"{progress.policy}/{progress.batches}",
            {
                "first_offset": first,
                "next_offset": following,
                "used": stats.used,
                "dropped": stats.dropped,
                "replayed": stats.replayed,
                "judged": len(self.judged),
                "superseded": len(self.superseded),
                "imputed": stats.imputed,
                "unrewarded": len(self.unrewarded) - stats.imputed,
                "revised": stats.revised,
                "corrections": stats.corrections,
                "cost_mean": stats.cost_mean,
                "multiplier": stats.multiplier,
                "pairs": stats.pairs,
                "practised": stats.practised,
                "practice_reward": stats.practice_reward,
                "users_with_features": known,
                "policy_loss": stats.policy_loss,
                "kl": stats.kl,
                "anchor": progress.anchor,
                "version_sequence": progress.sequence,
            },
        )
        _log.info(
            "batch %d: offsets %d to %d, %d of %d used (+%d replayed), reward %+.2f, "
            "violations %.1f%% (price %.2f), kl %.3f, weight %.2f, clipped %.1f%%, %.1f s",
            *(progress.batches, first, following - 1, stats.used, count, stats.replayed),
            *(stats.reward_mean, 100 * stats.cost_mean, stats.multiplier),
            *(stats.kl, stats.mean_weight, 100 * stats.clip_share, seconds),
        )


def _teaches_nothing(experience: Experience) -> bool:
    return experience.censored and not experience.imputed


def run(
    settings: Settings,
    clock: Clock,
    new_id: NewId,
    stop: Flag,
    reward_means: RewardMeans,
    *,
    process: str = "learner",
    crash_point: CrashPoint = no_crash,
    ranks: Ranks = ALONE,
) -> Progress:
    """Learn until ``stop`` is set; return how far it came.

    A broker that goes away is waited for up to 300 s, then DeadlineError says which one. Among
    several processes this is rank 0; the others `learner.following.follow`.
    """
    outlet = Outlet(settings.kafka, clock, new_id, stop)
    with Pulse(settings, clock, process) as pulse:
        try:
            learner = Learner(settings, clock, outlet, pulse, reward_means, crash_point, ranks)
            learner.resume()
            while not stop.is_set():
                reader = _connect(learner, stop)
                if reader is None:
                    break
                try:
                    _follow(learner, reader, stop)
                except KafkaError as error:
                    _log.warning("lost the broker (%s); connecting again", error)
                finally:
                    reader.close()
            return learner.progress
        finally:
            outlet.close()


def _connect(learner: Learner, stop: Flag) -> Reader | None:
    """Return a reader at the checkpoint's offset; None when asked to stop while waiting."""
    kafka = learner.settings.kafka
    learner.rewind()
    learner.pulse.note = f"connecting to {kafka.bootstrap}"
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            positions = {_PLACE: learner.progress.next_offset}
            return Reader(kafka, (SAMPLES,), "headrace-learner", positions)
        except (KafkaError, UnavailableError) as error:
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"broker {kafka.bootstrap}: no topic samples within {CONNECT_SECONDS} s "
                    f"({error}); see 'headrace doctor'"
                ) from error
            _log.warning("waiting for %s: %s", kafka.bootstrap, error)
            learner.train.policy.ranks.keep_alive()
            if stop.wait(1.0):
                return None


def _follow(learner: Learner, reader: Reader, stop: Flag) -> None:
    learner.tell_what_is_lost(reader.positions()[_PLACE])
    learner.pulse.ready = True
    while not stop.is_set():
        for record in reader.poll(POLL_SECONDS):
            learner.take(record)
            if stop.is_set():
                return
        learner.show(reader.ends()[_PLACE] - reader.positions()[_PLACE])
