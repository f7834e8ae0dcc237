"""The view of a rollout as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from console.rollout_view import RolloutView
from console.table import table

STEP_HEADS = ("step", "", "share", "requests", "of", "users", "of")
ARM_HEADS = ("arm", "version", "requests", "users", "severe", "judges' rewards")
TEST_HEADS = ("test", "canary", "stable", "e-value", "acts at")


def view_text(view: RolloutView) -> str:
    """Return the view for people."""
    if view.phase == "none":
        return f"policy {view.policy}: no rollout controller has written a state yet"
    return "\n".join([*_opening(view), *_tables(view), *_closing(view)])


def _opening(view: RolloutView) -> Iterator[str]:
    yield f"policy {view.policy}: {view.phase}, served by {view.stable[:12]}"
    if view.candidate:
        since = f" since {view.since:%H:%M:%S}" if view.since else ""
        yield f"candidate {view.candidate[:12]}: {_share(view.weight, view.shadow_share)}{since}"
        yield f"rollout {view.rollout_id}, plan {view.plan[:12]}"
    if view.reason:
        yield f"reason: {view.reason}"
    if view.paused:
        yield f"PAUSED: {view.paused}"
    if view.pinned:
        yield "PINNED: no release is taken until unpin"
    if view.held:
        yield "HELD: the time of this step was up once"
    if view.cooldown_until and not view.candidate:
        yield f"no release is taken before {view.cooldown_until:%H:%M:%S}"


def _tables(view: RolloutView) -> Iterator[str]:
    if not view.candidate:
        return
    steps = [
        (
            step.number + 1,
            step.place,
            _share(step.weight, step.shadow_share),
            *(step.requests, step.needs_requests, step.users, step.needs_users),
        )
        for step in view.steps
    ]
    yield f"\n{table(STEP_HEADS, steps)}"
    arms = [(a.arm, a.version[:12], a.requests, a.users, a.severe, a.rewards) for a in view.arms]
    yield f"\n{table(ARM_HEADS, arms)}"
    tests = [
        (t.name, t.canary, t.stable, f"{t.e_value:.4g}", f"{t.threshold:.4g}") for t in view.tests
    ]
    yield f"\n{table(TEST_HEADS, tests)}\n"


def _closing(view: RolloutView) -> Iterator[str]:
    if view.candidate:
        if view.reward:
            found = view.reward
            yield (
                f"reward difference {found.mean:+.3f}, from {found.lower:+.3f} to "
                f"{found.upper:+.3f}, allowed {found.allowed:+.3f}"
            )
        mark = f"{view.watermark:%H:%M:%S}" if view.watermark else "none yet"
        yield f"attribution watermark: {mark}"
        yield from (f"not further yet: {words}" for words in view.missing)
    if view.history:
        yield f"served before: {', '.join(version[:12] for version in view.history)}"
    yield f"controller {view.writer or '-'} holds term {view.term}; as of {view.as_of:%H:%M:%S}"


def _share(weight: float, shadow_share: float) -> str:
    if weight:
        return f"{weight:.1%} of the users"
    return f"shadow of {shadow_share:.1%} of the requests"
