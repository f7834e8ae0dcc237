"""What a replay is asked and what it tells: one JSON object a line, read by `headrace replay`."""

from __future__ import annotations

from msgspec import Struct


class ReplayOrder(Struct, frozen=True, kw_only=True):
    """Make the versions after ``start`` up to ``end`` again, in ``directory``, which must be new.

    Both are whole ids; ``start`` may be "base", and "" leaves the choice to the replay: the nearest
    version whose state is kept, and that did not learn from the user. ``without_user``: as if this
    user had never been there.
    """

    directory: str
    end: str
    start: str = ""
    without_user: str = ""


class Step(Struct, frozen=True, kw_only=True, tag="step"):
    """How far it has come: offset of those from ``first`` to ``next - 1``, number of the newest
    version."""

    what: str
    offset: int
    first: int
    next: int
    versions: int = 0


class Working(Struct, frozen=True, tag="working"):
    """That it is at work, with nothing new to tell: a batch or a release may take long.

    None is told while the broker is waited for, so that silence means a wait that does not end.
    """


class Remade(Struct, frozen=True, kw_only=True):
    """A version of the first run and what became of it in the replay.

    ``remade`` is "" where the replay made none of that number; ``same`` means every byte;
    ``differences`` name what is not the same, in the manifest and in files.
    """

    sequence: int
    version: str
    remade: str
    same: bool
    same_weights: bool
    differences: tuple[str, ...] = ()


class Removal(Struct, frozen=True, kw_only=True):
    """What was left out with a user: samples by their outcome in the first run's ledgers.

    ``versions`` are those that had read them, ``first_offset`` is None where there was none.
    ``moved`` is how far the weights of version ``newest`` lie from those that the first run gave
    to that number: the norm of the difference over the norm of those; None when none was made.
    Not ``certain``: whether the user taught the start itself cannot be told any more.
    ``control`` is how many versions end before the user's first sample: they must come out as they
    were. ``unlike`` is the first version that differs for another reason than the user's absence,
    "" when none does.
    """

    samples: int
    outcomes: dict[str, int]
    versions: tuple[str, ...]
    first_offset: int | None
    newest: int
    certain: bool
    moved: float | None
    control: int
    unlike: str


class ReplayReport(Struct, frozen=True, kw_only=True, tag="report"):
    """What a replay found; ``same``: every version came out as it was.

    ``why`` says why the first version that differs may differ, with a user left out the first that
    differs for another reason. ``records`` were read; ``unlearned``
    samples at the end fill no micro-batch. ``looked_up`` user features were in no ledger and come
    from the feature store. ``log_begins`` is the first offset that the broker still has.
    """

    policy: str
    start: str
    end: str
    directory: str
    same: bool
    versions: tuple[Remade, ...]
    why: tuple[str, ...]
    records: int
    unlearned: int
    looked_up: int
    log_begins: int
    removal: Removal | None = None

    @property
    def is_done(self) -> bool:
        """Return whether all came out the same, or surely without the user and for no other
        reason."""
        if self.removal is None:
            return self.same
        removal = self.removal
        return removal.samples > 0 and removal.certain and not removal.unlike


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """Why there is no report; ``usage``: what was asked for is not possible, ``late``: the broker
    did not answer in time."""

    message: str
    usage: bool = False
    late: bool = False


Line = Step | Working | ReplayReport | Failed
