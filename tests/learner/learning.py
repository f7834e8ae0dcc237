"""A learner without a broker, that is given batches of answers one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from contracts.events import Sample
from contracts.settings import Settings
from learner.adapters import load_policy
from learner.experience import Experience, experience_of
from learner.progress import Beside, Progress, advance
from learner.train_state import TrainState, new_train_state

MakeSample = Callable[..., Sample]


class Learning:
    """A learner that is given answers by their releases, a batch at a time."""

    def __init__(self, settings: Settings, make_sample: MakeSample) -> None:
        self.settings, self._make = settings, make_sample
        self.state: TrainState = new_train_state(load_policy(settings), settings.learner)
        self.progress = Progress(policy="assistant", base=self.state.policy.base)
        self._next = 1
        self.users: dict[str, str] = {}

    def answers(self, *served: int, users: Sequence[str] = ()) -> list[Experience]:
        """Return one more answer of each release, to these users."""
        numbers = range(self._next, self._next + len(served))
        self._next += len(served)
        found = [
            replace(
                experience_of(self._make(number, correction=None), offset=number),
                behaviour_sequence=sequence,
            )
            for number, sequence in zip(numbers, served, strict=True)
        ]
        if users:
            found = [replace(e, user_id=user) for e, user in zip(found, users, strict=True)]
        self.users |= {e.decision_id: e.user_id for e in found}
        return found

    def take(
        self, *served: int, silent: tuple[int, ...] = (), users: Sequence[str] = ()
    ) -> list[str]:
        """Learn from one batch; return what became of its rated answers."""
        fresh = self.answers(*served, users=users)
        quiet = [replace(e, censored=True) for e in self.answers(*silent)]
        known = len(self.progress.ledger)
        beside = Beside(silent=quiet)
        self.progress = advance(self.state, self.progress, fresh, self.settings, beside)
        ids = {e.sample_id for e in fresh}
        return [o.outcome for o in self.progress.ledger[known:] if o.sample_id in ids]


def learned(settings: Settings, make_sample: MakeSample) -> tuple[TrainState, Progress]:
    """Return a learner that has learned from one batch, and how far it has come."""
    train = new_train_state(load_policy(settings), settings.learner)
    fresh = [experience_of(make_sample(number), offset=number) for number in range(8)]
    before = Progress(policy="assistant", base=train.policy.base)
    return train, advance(train, before, fresh, settings)
