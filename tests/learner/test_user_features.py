"""What the feature store knew of a user reaches the baseline; without it the learner goes on."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from contracts.clock import ManualClock
from contracts.events import Sample
from contracts.settings import Settings
from feature_store import parts
from feature_store.views import USER, FeatureRow, Value
from feature_store.writer import FeatureWriter
from learner.experience import experience_of
from learner.user_features import stored_reward_means


def test_reward_means_are_those_known_when_the_decision_was_made(
    settings: Settings, clock: ManualClock, make_sample: Callable[..., Sample]
) -> None:
    experiences = [experience_of(make_sample(number)) for number in range(60, 63)]
    clock.advance(30)
    values: dict[str, Value] = {
        "decisions": 3,
        "violations": 0,
        "rewards": 2,
        "reward_mean": -0.5,
        "reports": 0,
        "counted": "",
    }
    after = experiences[0].decided_at + timedelta(hours=1)
    known = FeatureRow(view=USER.name, key="user-0", values=values, event_time=clock.now())
    later = FeatureRow(
        view=USER.name, key="user-0", values={**values, "reward_mean": 1.0}, event_time=after
    )
    FeatureWriter(settings, clock).write([known, later])

    assert stored_reward_means(settings)(experiences) == [-0.5, None, None]


def test_a_store_that_cannot_be_opened_leaves_every_user_unknown(
    settings: Settings, tmp_path: Path, make_sample: Callable[..., Sample]
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    broken = msgspec.structs.replace(settings, state_dir=blocked)

    assert stored_reward_means(broken)([experience_of(make_sample(1))]) == [None]


def test_a_store_whose_parts_another_process_keeps_locked_leaves_every_user_unknown(
    settings: Settings,
    clock: ManualClock,
    make_sample: Callable[..., Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "WAIT_SECONDS", 0.05)
    FeatureWriter(settings, clock)
    lock = settings.state_dir / "features" / "offline" / USER.name / parts.READING
    look_up, asked = stored_reward_means(settings), [experience_of(make_sample(1))]
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert look_up(asked) == [None]
