"""What was taught of each decision: a revised reward corrects it, a retracted one undoes it.

Of every lesson the loss's own coefficient is kept, and the advantage as a function of the reward.
Where that says a for the reward before and b for the new one, b − a of the lesson's weight is owed.
It is taught by the next updates as a clipped advantage of its own, what the clip cuts off by those
after them, so that all of it arrives. This is Retroactive Advantage Correction (arXiv 2606.27580)
with the whole residual given back at the next step; as there, it is exact to first order where the
importance weight is, and a decision is never counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct, structs
from msgspec.structs import replace

from learner.experience import Experience
from learner.turns import in_turns
from learner.value import LARGEST_ADVANTAGE

SETTLED = 1e-7
"""Coefficients below this are rounding, of float32 sums near 1."""


Push = Callable[[float, float], float]
"""What a loss makes of an advantage, and of an answer's odds: see `learner.losses.push`."""


class Curve(Struct, frozen=True, array_like=True):
    """What advantage a lesson would have given to any reward, both bounds of it included.

    ``slope`` is per unit of reward, ``expected`` the baseline, ``reach`` the bound of the reward's
    part; ``price`` is the part of a violation, ``odds`` those of the answer, pi/(1 − pi).
    ``plain`` is the part of the weight that the advantage itself pushed, whatever the loss makes of
    one (`learner.losses.OTHERWISE`); none, once a revision wants what that makes of it.
    """

    slope: float = 1.0
    expected: float = 0.0
    reach: float = LARGEST_ADVANTAGE
    price: float = 0.0
    odds: float = 1.0
    plain: float = 0.0

    def taught(self, reward: float, push: Push) -> float:
        """Return how far a reward pushed, per unit of weight."""
        advantage = self.advantage(reward)
        return self.plain * advantage + (1.0 - self.plain) * push(advantage, self.odds)

    def advantage(self, reward: float) -> float:
        """Return the advantage of a reward."""
        told = _within(self.slope * (reward - self.expected), self.reach)
        return _within(self.price + told, LARGEST_ADVANTAGE)

    def joined(self, weight: float, other: Curve, its_weight: float) -> Curve:
        """Return the mean of two curves: exact for their sum where no bound cuts one of them."""
        share = its_weight / max(weight + its_weight, SETTLED)
        pairs = zip(structs.astuple(self), structs.astuple(other), strict=True)
        return Curve(*(mine + share * (its - mine) for mine, its in pairs))


class Lesson(Struct, frozen=True):
    """One teaching of a decision: its coefficient in the loss, its weight, and its curve."""

    decision_id: str
    reward: float
    coefficient: float
    weight: float
    curve: Curve = Curve()
    pays_debt: bool = False
    """Whether it paid a debt; then it changes what was taught, not what should have been."""
    share: float = 1.0
    """How much it counts beside a lesson with an observed reward."""
    logp: float = 0.0
    """Log-probability of the whole answer before the lesson."""
    decided: float = 0.0
    """When the decision was made, in POSIX seconds."""


class Taught(Struct, frozen=True, array_like=True):
    """All lessons of a decision. ``wanted`` is the coefficient they should add up to by now,
    ``weight`` and ``curve`` are those of all together.

    ``share`` is below 1 while the reward is an imputed one, which counts less than an observed one.
    ``retracted`` is what was wanted before ``reward`` was retracted, None while it stands.
    ``logp`` is the answer's log-probability before the first of the lessons, ``decided`` when the
    decision was made, in POSIX seconds.
    """

    reward: float
    coefficient: float = 0.0
    wanted: float = 0.0
    weight: float = 0.0
    share: float = 1.0
    retracted: float | None = None
    curve: Curve = Curve()
    logp: float | None = None
    decided: float = 0.0

    @property
    def owed(self) -> float:
        """Return the coefficient that is still to be taught."""
        return self.wanted - self.coefficient

    @property
    def standing(self) -> float:
        """Return the coefficient that is wanted as long as ``reward`` stands."""
        return self.wanted if self.retracted is None else self.retracted


Memory = Mapping[str, Taught]
"""Decision id to what was taught of it, the longest ago first."""


class Debt(Struct, frozen=True):
    """A decision whose reward changed after it was learned: its newest sample, and what is owed.

    ``logp`` is where a retraction ends: what the answer's log-probability was before any lesson.
    """

    experience: Experience
    coefficient: float
    logp: float | None = None

    def is_undone(self, logp: float) -> bool:
        """Return whether the policy is back where it was, or beyond, at a log-probability now.

        An optimizer divides by the size of its gradients: what took one batch to teach may be
        undone by a part of what is owed, and the rest would teach the opposite.
        """
        return self.logp is not None and (logp - self.logp) * self.coefficient >= 0.0


def paid_now(owed: Sequence[Debt], batch_samples: int) -> tuple[Debt, ...]:
    """Return the debts that one update pays: a quarter of a batch, or an eighth of what there is,
    where that is more, but no more than a batch. Users take turns.

    Lessons that were given over many updates are not undone by one: clipped, and scaled by the
    optimizer, a large gradient moves the weights no further than a small one. And who changes their
    mind all day must not make others wait.
    """
    most = min(max(1, batch_samples // 4, len(owed) // 8), max(1, batch_samples))
    return tuple(owed[place] for place in in_turns([d.experience.user_id for d in owed])[:most])


def revise(memory: Memory, experience: Experience, push: Push) -> dict[str, Taught]:
    """Return the memory after a newer reward of a decision in it, which is an observed one."""
    before = memory[experience.decision_id]
    curve, weight = before.curve, before.weight / before.share
    was = curve.taught(before.reward, push)
    now = push(curve.advantage(experience.reward), curve.odds)
    after = replace(
        before,
        reward=experience.reward,
        wanted=before.standing / before.share + weight * (now - was),
        weight=weight,
        share=1.0,
        retracted=None,
        curve=replace(curve, plain=0.0),
    )
    return {**memory, experience.decision_id: after}


def retract(memory: Memory, decision_id: str) -> dict[str, Taught]:
    """Return the memory after a decision lost its reward: nothing should have been taught.

    What was is kept, should it get another one.
    """
    before = memory[decision_id]
    after = replace(before, wanted=0.0, retracted=before.standing)
    return {**memory, decision_id: after}


def settle(memory: Memory, undone: Iterable[str]) -> dict[str, Taught]:
    """Return the memory when the policy is back where it was before these decisions taught.

    Nothing is owed. What was taught and not taken back stays on the account, or it could be taught
    a second time by rating the decision again.
    """
    found = dict(memory)
    for decision_id in undone:
        found[decision_id] = replace(found[decision_id], wanted=found[decision_id].coefficient)
    return found


def forgotten(before: Memory, lessons: Iterable[Lesson], after: Memory) -> float:
    """Return the newest time of a decision that is no longer remembered, 0 where all are."""
    decided = {one: taught.decided for one, taught in before.items()}
    decided |= {lesson.decision_id: lesson.decided for lesson in lessons}
    return max((when for one, when in decided.items() if one not in after), default=0.0)


def remember(memory: Memory, lessons: Iterable[Lesson], limit: int) -> dict[str, Taught]:
    """Return the memory with more lessons, the newest ``limit`` decisions of it."""
    found = dict(memory)
    for lesson in lessons:
        new = Taught(lesson.reward, share=lesson.share, logp=lesson.logp, decided=lesson.decided)
        before = found.pop(lesson.decision_id, new)
        coefficient = before.coefficient + lesson.coefficient
        if lesson.pays_debt:
            found[lesson.decision_id] = replace(before, coefficient=coefficient)
            continue
        found[lesson.decision_id] = replace(
            before,
            reward=lesson.reward,
            coefficient=coefficient,
            wanted=before.wanted + lesson.coefficient,
            weight=before.weight + lesson.weight,
            curve=before.curve.joined(before.weight, lesson.curve, lesson.weight),
        )
    surplus = len(found) - limit
    return dict(list(found.items())[surplus:]) if surplus > 0 else found


def debts(memory: Memory, revised: Sequence[Experience]) -> tuple[Debt, ...]:
    """Return what is owed for these experiences, without those where nothing is."""
    known = [(e, memory.get(e.decision_id)) for e in revised]
    return tuple(
        Debt(e, t.owed, t.logp if t.retracted is not None else None)
        for e, t in known
        if t is not None and abs(t.owed) > SETTLED
    )


def _within(value: float, bound: float) -> float:
    return min(max(value, -bound), bound)
