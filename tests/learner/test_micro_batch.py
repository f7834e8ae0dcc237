"""Batches and the replay buffer are functions of the log."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from contracts.events import Sample
from contracts.settings import Settings
from learner.experience import Experience, experience_of
from learner.micro_batch import CORRECTIONS_KEPT, Replay, compose, remember

MakeSample = Callable[..., Sample]


def _experiences(make_sample: MakeSample, first: int, last: int) -> list[Experience]:
    return [
        experience_of(
            make_sample(number),
            offset=number,
            correction_ids=(4, 3) if number % 7 == 0 else (),
        )
        for number in range(first, last)
    ]


def _all(experiences: list[Experience]) -> frozenset[str]:
    return frozenset(e.sample_id for e in experiences)


def test_the_draw_depends_on_the_seed_and_the_batch_number_alone(
    settings: Settings, make_sample: MakeSample
) -> None:
    old = _experiences(make_sample, 0, 30)
    replay = remember(Replay(), old, _all(old), settings.learner)
    fresh = _experiences(make_sample, 30, 38)

    first, again, next_ = (
        compose(fresh, replay, settings.learner, number=number, served_sequence=0)
        for number in (4, 4, 5)
    )

    assert first == again
    assert first.replayed != next_.replayed
    assert len(first.replayed) == 2  # a quarter of eight
    assert {e.sample_id for e in first.replayed} <= _all(old)


def test_replay_leaves_out_old_versions_but_keeps_corrections(
    settings: Settings, make_sample: MakeSample
) -> None:
    old = _experiences(make_sample, 0, 30)
    replay = remember(Replay(), old, _all(old), settings.learner)
    fresh = _experiences(make_sample, 30, 38)

    batch = compose(
        fresh,
        replay,
        settings.learner,
        number=0,
        served_sequence=settings.learner.max_version_lag + 1,
    )

    assert batch.replayed == ()
    assert [e.offset for e in batch.corrections] == [35, 0, 7, 14, 21, 28]


def test_the_buffer_is_bounded_and_a_revision_replaces_what_it_revises(
    settings: Settings, make_sample: MakeSample
) -> None:
    old = _experiences(make_sample, 0, 100)
    replay = remember(Replay(), old, _all(old), settings.learner)
    assert [e.offset for e in replay.recent] == list(range(68, 100))

    revision = replace(old[99], sample_id="revised", reward=0.5, offset=100)
    revised = remember(replay, [revision], frozenset({"revised"}), settings.learner)

    found = [e for e in revised.recent if e.decision_id == old[99].decision_id]
    assert [e.sample_id for e in found] == ["revised"]


def test_what_was_dropped_is_not_replayed(settings: Settings, make_sample: MakeSample) -> None:
    old = _experiences(make_sample, 1, 5)

    replay = remember(Replay(), old, frozenset({old[0].sample_id}), settings.learner)

    assert replay.recent == (old[0],)


def test_violations_do_not_push_out_what_people_corrected(
    settings: Settings, make_sample: MakeSample
) -> None:
    replay = Replay()
    told = _experiences(make_sample, 0, 8)  # two of them
    broken = replace(told[1], violation=True)
    replay = remember(replay, told, frozenset(), settings.learner)
    for first in range(0, CORRECTIONS_KEPT + 8, 8):
        silent = [
            replace(broken, decision_id=f"d{first + n}", offset=100 + first + n) for n in range(8)
        ]
        names = frozenset(e.decision_id for e in silent)
        replay = remember(replay, silent, frozenset(), settings.learner, names)
    offsets = [e.offset for e in replay.corrections]
    assert offsets == [0, 7, *range(108, 108 + CORRECTIONS_KEPT)]
    many = [replace(told[0], decision_id=f"p{n}", offset=1000 + n) for n in range(CORRECTIONS_KEPT)]
    replay = remember(replay, many, frozenset(), settings.learner)
    offsets = [e.offset for e in replay.corrections]
    broken_offsets = range(108, 108 + CORRECTIONS_KEPT)
    of_people = [7, *range(1001, 1000 + CORRECTIONS_KEPT)]  # the other one's user said more since
    assert offsets == sorted([*broken_offsets, *of_people])


def test_a_correction_is_not_new_because_its_decision_was_rated_again(
    settings: Settings, make_sample: MakeSample
) -> None:
    """Or one who rates one answer all day would have their correction in every batch."""
    [told] = _experiences(make_sample, 0, 1)
    broken = replace(told, decision_id="broken", correction_ids=(), violation=True)
    others = [replace(told, decision_id=f"d{n}", user_id=f"u{n}") for n in range(30)]
    known = (told, broken, *others)
    names = frozenset({"broken"})
    replay = remember(Replay(), known, frozenset(), settings.learner, names)
    config = replace(settings.learner, correction_replay=0)

    def corrected(*changed: Experience) -> list[str]:
        learned = frozenset(e.decision_id for e in known)
        batch = compose(
            changed, replay, config, number=1, served_sequence=0, learned=learned, safe_ids=(5, 3)
        )
        return [e.decision_id for e in batch.corrections]

    again = [replace(e, sample_id=f"again-{e.sample_id}", reward=-1.0) for e in (told, broken)]
    assert corrected(*again) == []
    after = remember(replay, again, frozenset(), config)
    assert {e.decision_id for e in after.corrections} == {e.decision_id for e in known}
    assert corrected(replace(again[0], correction_ids=(9, 3), violation=True)) == []
    assert corrected(replace(again[0], correction_ids=(), violation=True)) == [told.decision_id]
    assert corrected(replace(again[1], correction_ids=(9, 3))) == ["broken"]
    other = remember(replay, [replace(again[0], correction_ids=(9, 3))], frozenset(), config)
    assert [e.correction_ids for e in other.corrections][-1] == (9, 3)
    harmless = remember(replay, [replace(again[1], violation=False)], frozenset(), config)
    assert "broken" not in {e.decision_id for e in harmless.corrections}


def test_a_correction_rated_again_is_drawn_like_any_other(
    settings: Settings, make_sample: MakeSample
) -> None:
    [told] = _experiences(make_sample, 0, 1)
    others = [replace(told, decision_id=f"d{n}", user_id=f"u{n}") for n in range(30)]
    replay = remember(Replay(), (told, *others), frozenset(), settings.learner)
    again, drawn = replace(told, sample_id="again", reward=-1.0), 0
    learned = frozenset({told.decision_id})
    for number in range(200):
        batch = compose(
            [again], replay, settings.learner, number=number, served_sequence=0, learned=learned
        )
        assert len(batch.corrections) == settings.learner.correction_replay
        drawn += again in batch.corrections
    assert 0 < drawn < 200 * 2 * settings.learner.correction_replay / 31


def test_no_account_pushes_out_what_others_corrected(
    settings: Settings, make_sample: MakeSample
) -> None:
    [told] = _experiences(make_sample, 0, 1)
    by_few = [replace(told, decision_id=f"f{n}", user_id=f"u{n // 2}") for n in range(20)]
    by_one = [replace(told, decision_id=f"a{n}", user_id="always") for n in range(CORRECTIONS_KEPT)]

    replay = remember(Replay(), by_few, frozenset(), settings.learner)
    replay = remember(replay, by_one, frozenset(), settings.learner)

    kept = [e.decision_id for e in replay.corrections]
    assert kept == [e.decision_id for e in (*by_few, *by_one[20:])]
