"""The learner's story: resume, read samples, learn a micro-batch, commit, release, go on.

`run` is the whole of it, `Learner` what goes on from record to record. Of Kafka it knows
`contracts.broker` alone, of the policy `learner.update` and its neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from threading import Event as Flag
from traceback import format_tb

import torch
from kafka.errors import KafkaError

from contracts.broker import Reader, Received
from contracts.clock import Clock
from contracts.errors import CodecError, TopicMissingError
from contracts.evidence import read_evidence
from contracts.ids import NewId
from contracts.manifest import file_sha256
from contracts.settings import Settings
from contracts.signing import signing_key
from contracts.topics import RELEASES, SAMPLES
from guard.rules import digest_of
from learner import checkpoint
from learner.adapters import load_policy
from learner.backoff import Backoff
from learner.directory import CrashPoint, no_crash, owned
from learner.evaluation import release_evidence
from learner.experience import Experience
from learner.following import lead
from learner.imputation import impute
from learner.intake import Arrival, Intake
from learner.kept_means import kept_means, means_path
from learner.outlet import Outlet, Output
from learner.practice import read_practice
from learner.progress import Beside, Progress, advance, release_is_due, released
from learner.publish import Published, publish, release_event
from learner.pulse import Pulse
from learner.ranks import ALONE, Ranks
from learner.resume import check_learned, check_log, check_unchanged, restored
from learner.reward_model import named_reward_model
from learner.safe_answer import check_safe_answer
from learner.telemetry import (
    batch_span,
    counts_of,
    tell_batch,
    tell_lost,
    tell_release,
    tell_start,
    trace_samples,
)
from learner.train_state import TrainState, new_train_state
from learner.usable import Limits
from learner.user_features import RewardMeans, with_reward_means
from learner.version_state import keep_state, published_before

POLL_SECONDS = 0.5
_PLACE = f"{SAMPLES.name}/0"
_log = logging.getLogger("learner")


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
        self.progress = restored(settings, self.root, self.train) or Progress(
            policy=settings.policy.name, base=self.train.policy.base
        )
        lead(self.train, self.progress, settings)
        self.reward_model = named_reward_model(settings)
        policy = self.train.policy
        limits = Limits(settings.engine.max_model_len, policy.vocabulary_size, self.train.safe_ids)
        self.intake = Intake(settings, policy.tokenizer, self.progress.seen, limits)
        self.dead_letters = 0
        self._lost_until = 0

    def take(self, record: Received) -> None:
        """Take in one record of `samples`; learn when `Intake.is_full`.

        What cannot become an experience is put aside, so that the log goes on behind it.
        UnavailableError when a record that was learned from is now another.
        """
        if record.offset < self.progress.next_offset:
            check_learned(record, self.progress, self.settings)
            return
        try:
            arrival = self.intake.read(record, self.progress)
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
            self.intake.add(arrival, self.progress)
            if self.intake.is_full:
                self.learn()

    def _put_aside(self, record: Received, error: CodecError) -> None:
        _log.warning("offset %d gives no sample: %s", record.offset, error.reason)
        self.dead_letters += 1
        self.outlet.dead_letter(record, error)

    def learn(self) -> None:
        """Learn from the pending micro-batch, commit it, and release when it is time."""
        with batch_span(self.progress, self.intake):
            began = self.clock.monotonic()
            self._advance()
            keep = self.settings.learner.keep_checkpoints
            checkpoint.save(self.root, self.train, self.progress, keep, self.crash_point)
            trace_samples(self.progress, self.intake)
            seconds = self.clock.monotonic() - began
            tell_batch(self.outlet, self.progress, self.intake, seconds)
            self.intake.begin(self.progress.seen)
            self.release_if_due()

    def _advance(self) -> None:
        """Learn from what was read; what the gateway did not log of users is looked up before."""
        intake = self.intake
        fresh, silent = _experiences(intake.pending), _experiences(intake.silent)
        if fresh:
            silent = impute(silent, self.reward_model, self.settings)
        known = with_reward_means([*fresh, *silent], self._kept_means())
        self.crash_point("looked-up")
        beside = Beside(
            judged=_experiences(intake.judged),
            superseded=[(arrival.experience, why) for arrival, why in intake.superseded],
            silent=known[len(fresh) :],
        )
        known_fresh = known[: len(fresh)]
        self.progress = advance(self.train, self.progress, known_fresh, self.settings, beside)

    def _kept_means(self) -> RewardMeans:
        """Return the lookup of the next batch: it gives the same again after a crash."""
        keep = self.settings.learner.keep_checkpoints
        return kept_means(means_path(self.root), self.reward_means, self.progress.batches, keep)

    def rewind(self) -> None:
        """Forget what was read since the last commit; it will be read again."""
        self.intake.begin(self.progress.seen)

    def resume(self) -> None:
        """Say where this run goes on from, and finish a release that a crash cut off."""
        tell_start(self.outlet, self.progress)
        saved = checkpoint.place(self.root, self.progress)
        if saved.is_dir() and (cut_off := published_before(self.settings, saved)) is not None:
            self._release(cut_off)
        else:
            self.release_if_due()

    def tell_what_is_lost(self, begins: int) -> None:
        """Say so when the broker has removed what may hold samples that were not learned from:
        ``begins`` is the next offset there is."""
        if self.progress.batches > 0 and begins > max(self.progress.next_offset, self._lost_until):
            self._lost_until = begins
            tell_lost(self.outlet, self.progress, begins)

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
        practice = self.train.practice
        return publish(
            self.settings,
            self.train.policy,
            self.progress,
            evidence,
            self.crash_point,
            state=state,
            practice_rules=digest_of(practice.rules) if practice else "",
        )

    def _release(self, published: Published) -> None:
        """Keep the version's state, announce it and take it for the parent of the next one."""
        saved = checkpoint.place(self.root, self.progress)
        keep_state(self.settings, saved, published.version, self.progress, self.crash_point)
        self.crash_point("before-announce")
        evidence = read_evidence(published.directory)
        event = release_event(self.settings, published, self.progress, self.clock)
        self.outlet.send(RELEASES, event)
        judged = evidence.samples if evidence else 0
        tell_release(self.outlet, event, published.manifest, self.progress, judged)
        self.progress = released(self.progress, published.version)
        self.crash_point("after-announce")
        _log.info("release %d: version %s", event.sequence, published.version[:12])

    def show(self, lag: int | None) -> None:
        """Say in the heartbeat how things stand."""
        self.pulse.lag = lag
        self.pulse.counts = counts_of(self.progress, self.intake, self.dead_letters)
        count = len(self.intake.pending)
        self.pulse.note = f"{count} of {self.settings.learner.batch_samples} samples"


def _experiences(arrivals: Mapping[str, Arrival]) -> list[Experience]:
    return [arrival.experience for arrival in arrivals.values()]


def run(
    settings: Settings,
    clock: Clock,
    new_id: NewId,
    stop: Flag,
    reward_means: RewardMeans,
    *,
    process: str,
    crash_point: CrashPoint = no_crash,
    ranks: Ranks = ALONE,
) -> Progress:
    """Learn until ``stop`` is set; return how far it came.

    ``process`` is the name of its heartbeat, another one for each policy
    (`contracts.settings.process_for`).
    A broker that goes away, or does not give the log, is waited for up to 300 s (`Backoff`), then
    DeadlineError says which one, and why.
    SettingsError for what cannot be learned with, UnavailableError for a checkpoint that cannot be
    read, a log that does not fit it, and a state directory where another learner is at work. Among
    several processes this is rank 0; the others `learner.following.follow`.
    """
    outlet = Outlet(settings.kafka, clock, new_id, stop)
    with owned(settings), Pulse(settings, clock, process) as pulse:
        try:
            learner = Learner(settings, clock, outlet, pulse, reward_means, crash_point, ranks)
            check_unchanged(settings, learner.progress)
            check_safe_answer(learner.train.policy, settings)
            learner.resume()
            backoff = Backoff(settings.kafka, clock, stop)
            while not stop.is_set():
                try:
                    with closing(_connect(learner)) as reader:
                        _follow(learner, reader, stop, backoff)
                except (KafkaError, TopicMissingError) as error:
                    backoff.pause(error)
            return learner.progress
        finally:
            outlet.close()


def _connect(learner: Learner) -> Reader:
    """Return a reader from the last record that was learned from, which `take` knows again."""
    kafka, learned = learner.settings.kafka, learner.progress.next_offset
    learner.rewind()
    learner.pulse.ready, learner.pulse.lag = False, None
    learner.pulse.note = f"connecting to {kafka.bootstrap}"
    positions = {_PLACE: max(learned - 1, 0)}
    return Reader(kafka, (SAMPLES,), "headrace-learner", positions, begin_again=False)


def _follow(learner: Learner, reader: Reader, stop: Flag, backoff: Backoff) -> None:
    begins, ends = reader.positions()[_PLACE], reader.ends()[_PLACE]
    check_log(learner.settings, learner.root, learner.progress, begins, ends)
    learner.tell_what_is_lost(begins)
    while not stop.is_set():
        found = reader.poll(POLL_SECONDS)
        if found:
            backoff.read(found[-1].offset)
        elif learner.pulse.lag == 0:
            backoff.end()
        learner.pulse.ready = learner.pulse.ready or bool(found) or learner.pulse.lag == 0
        for record in found:
            learner.take(record)
            if stop.is_set():
                return
        learner.show(reader.ends()[_PLACE] - reader.positions()[_PLACE])
