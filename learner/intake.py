"""What was read of `samples` since the last commit, sorted by what it is for.

Of Kafka it knows the records it is given, of the policy the tokenizer alone.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from contracts.broker import Received
from contracts.codec import trace_headers
from contracts.errors import CodecError
from contracts.events import Preference, Sample
from contracts.judges import is_judge
from contracts.settings import Settings
from learner.assistant_turn import correction_ids
from learner.experience import Experience, experience_of
from learner.imputation import may_be_imputed
from learner.ledger import FORGOTTEN, SUPERSEDED, UNRATED, WITHDRAWN, Outcome
from learner.progress import Progress
from learner.usable import Limits, trimmed, without_tokens

READ_PER_PLACE = 128
"""So many samples are read for each place of a micro-batch; then it is learned as it is."""


class Arrival(Struct, frozen=True):
    """A new sample and the trace it belongs to.

    ``withdrawn``: its decision has no reward now; ``given``: somebody gave the reward that it has;
    ``revision`` counts the samples of a decision from 0.
    """

    experience: Experience
    trace: dict[str, str]
    withdrawn: bool = False
    given: bool = True
    revision: int = 0


class Intake:
    """Samples of one policy, read and not committed yet.

    ``pending`` fill the next micro-batch, ``judged`` are of judges and train nothing,
    ``silent`` have no signal, each by the decision it is about; ``superseded`` teach nothing
    any more, with the outcome that says why. What teaches nothing has no tokens, so that none has
    more than ``limits`` allow. The counts are of records since the start of the process that bring
    no sample.
    """

    def __init__(
        self, settings: Settings, tokenizer: Any, seen: Iterable[str], limits: Limits
    ) -> None:
        self.pending: dict[str, Arrival] = {}
        self.judged: dict[str, Arrival] = {}
        self.silent: dict[str, Arrival] = {}
        self.superseded: list[tuple[Arrival, str]] = []
        self.preferences = 0
        self.duplicates = 0
        self.others = 0
        self.served: dict[str, int] = {}
        """Numbers of versions of another line, whose answers count like those of its own."""
        self._settings = settings
        self._policy = settings.policy
        self._limits = limits
        self._full = settings.learner.batch_samples
        self._tokenizer = tokenizer
        self._seen = set(seen)
        self._rated: tuple[tuple[Outcome, ...], frozenset[str]] = ((), frozenset())

    @property
    def is_full(self) -> bool:
        """Return whether the pending samples make a micro-batch, or as many were read as may be.

        Both follow from the log alone, so that whoever reads it again learns the same batches.
        """
        return len(self.pending) == self._full or self._count() >= READ_PER_PLACE * self._full

    def _count(self) -> int:
        groups = (self.pending, self.judged, self.silent, self.superseded)
        return sum(map(len, groups))

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """Return everything read since the last commit."""
        superseded = (one for one, _ in self.superseded)
        groups = (self.pending, self.judged, self.silent)
        return (*(one for group in groups for one in group.values()), *superseded)

    def begin(self, seen: Iterable[str]) -> None:
        """Forget what was read; ``seen`` are the ids of samples that the last commit remembers."""
        self.pending.clear()
        self.judged.clear()
        self.silent.clear()
        self.superseded.clear()
        self._seen = set(seen)

    def read(self, record: Received, progress: Progress) -> Arrival | None:
        """Return what a record brings, None for a sample seen before or of another policy.

        Preferences are for losses over pairs; what they correct is in the samples, too. CodecError
        for a record that is no event; the template of a tokenizer raises what it likes.
        """
        sample = record.event()
        if isinstance(sample, Preference):
            self.preferences += 1
            return None
        assert isinstance(sample, Sample)
        if sample.assignment.policy != self._policy.name:
            self.others += 1
            return None
        if sample.id in self._seen:
            self.duplicates += 1
            return None
        wanted = sample.correction
        experience = experience_of(
            sample,
            offset=record.offset,
            sequences=ChainMap(progress.versions, self.served),
            correction_ids=correction_ids(self._tokenizer, wanted) if wanted else (),
            appended=record.appended,
        )
        return Arrival(
            experience=trimmed(experience, self._limits),
            trace=trace_headers(record.headers),
            withdrawn=sample.withdrawn,
            given=sample.status == "final",
            revision=sample.revision,
        )

    def add(self, arrival: Arrival, progress: Progress) -> None:
        """Put a sample where it belongs; a newer one of its decision takes an older one's place."""
        if self._is_no_retraction(arrival, progress):
            arrival = replace(arrival, withdrawn=False)
        experience = arrival.experience
        self._seen.add(experience.sample_id)
        censored = experience.censored and not arrival.withdrawn
        if censored and self._is_known(experience.decision_id, progress):
            self.superseded.append((_bare(arrival), SUPERSEDED))
            return
        judging = is_judge(self._policy.name, experience.user_id, self._policy.judge_share)
        if judging and not (arrival.given or arrival.withdrawn):
            self._add_unjudged(arrival, progress)
            return
        forgotten = not judging and self._is_forgotten(arrival, progress)
        self._supersede(experience.decision_id)
        if forgotten:
            self.superseded.append((_bare(arrival), FORGOTTEN))
        elif arrival.withdrawn:
            undoes = experience.decision_id in progress.taught  # which takes its tokens
            self.superseded.append((arrival if undoes else _bare(arrival), WITHDRAWN))
        elif censored:
            teaches = may_be_imputed(experience, self._settings)
            self.silent[experience.decision_id] = arrival if teaches else _bare(arrival)
        elif judging:
            self.judged[experience.decision_id] = arrival
        else:
            self.pending[experience.decision_id] = arrival

    def _add_unjudged(self, arrival: Arrival, progress: Progress) -> None:
        """Put an answer aside that a judge was silent about: the reward that silence has by
        default is no evidence, and what was said before no longer holds."""
        decision_id = arrival.experience.decision_id
        self._supersede(decision_id)
        if any(e.decision_id == decision_id for e in progress.evaluation):
            self.superseded.append((_bare(arrival), WITHDRAWN))
        else:
            self.silent[decision_id] = _bare(arrival)

    def _is_known(self, decision_id: str, progress: Progress) -> bool:
        """Tell whether a decision has a reward or taught: a sample without one changes nothing.

        What was rated and not learned from is known as long as the ledger has it.
        """
        waiting = decision_id in self.pending or decision_id in self.judged
        return waiting or decision_id in progress.taught or decision_id in self._rated_in(progress)

    def _is_no_retraction(self, arrival: Arrival, progress: Progress) -> bool:
        """Tell whether it takes back what never came, and says no more than that nobody spoke.

        A restarted stream processor sends so what it may have rewarded before, and one that is
        behind by more than a window all of its silent decisions.
        """
        one = arrival.experience
        if not (arrival.withdrawn and arrival.revision == 0 and one.censored):
            return False
        may_have_taught = one.decided_at.timestamp() <= progress.forgotten_before
        judged = any(e.decision_id == one.decision_id for e in progress.evaluation)
        return not (may_have_taught or judged or self._is_known(one.decision_id, progress))

    def _is_forgotten(self, arrival: Arrival, progress: Progress) -> bool:
        """Tell whether this changes a reward, and what that taught may be forgotten by now."""
        decision_id = arrival.experience.decision_id
        waiting = decision_id in self.pending or decision_id in self.silent
        if arrival.revision == 0 or waiting or decision_id in progress.taught:
            return False
        return arrival.experience.decided_at.timestamp() <= progress.forgotten_before

    def _rated_in(self, progress: Progress) -> frozenset[str]:
        """Return the decisions with an observed reward in the ledger, gone over once a commit."""
        ledger, rated = self._rated
        if ledger is not progress.ledger:
            ledger = progress.ledger
            observed = (o for o in ledger if o.outcome not in UNRATED and not o.reward_model)
            rated = frozenset(o.decision_id for o in observed)
            self._rated = ledger, rated
        return rated

    def _supersede(self, decision_id: str) -> None:
        """Put aside what was read of a decision and not learned yet: a newer sample holds."""
        for group in (self.pending, self.judged, self.silent):
            older = group.pop(decision_id, None)
            if older is not None:
                self.superseded.append((_bare(older), SUPERSEDED))


def _bare(arrival: Arrival) -> Arrival:
    return replace(arrival, experience=without_tokens(arrival.experience))


def sample_of(record: Received) -> Sample | None:
    """Return the sample in a record, None when it holds none."""
    try:
        event = record.event()
    except CodecError:
        return None
    return event if isinstance(event, Sample) else None


def sample_id_of(record: Received) -> str:
    """Return the id of the sample in a record, "" when it holds none."""
    sample = sample_of(record)
    return sample.id if sample is not None else ""
