"""What the feature store answered for a batch is read from disk when the batch is learned again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from contracts.errors import UnavailableError
from contracts.events import Sample
from learner.experience import Experience, experience_of
from learner.kept_means import kept_means, means_path

MakeSample = Callable[..., Sample]


def _answer(*means: float | None) -> Callable[[Sequence[Experience]], list[float | None]]:
    """Return a store that is asked for as many experiences as there are means."""

    def look_up(experiences: Sequence[Experience]) -> list[float | None]:
        assert len(experiences) == len(means)
        return list(means)

    return look_up


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return means_path(tmp_path / "assistant")


@pytest.fixture
def asked(make_sample: MakeSample) -> list[Experience]:
    return [experience_of(make_sample(number)) for number in range(6)]


def test_the_first_answer_holds_and_one_that_was_unknown_stays_so(
    path: Path, asked: list[Experience]
) -> None:
    assert kept_means(path, _answer(None, 0.1), 0, 3)(asked[:2]) == [None, 0.1]
    assert kept_means(path, _answer(0.7), 0, 3)(asked[:3]) == [None, 0.1, 0.7]
    assert kept_means(path, _answer(), 0, 3)(asked[2::-1]) == [0.7, 0.1, None]


def test_the_means_of_the_newest_batches_are_kept_and_no_others(
    path: Path, asked: list[Experience]
) -> None:
    for batch in range(4):
        kept_means(path, _answer(batch / 8), batch, 2)(asked[batch : batch + 1])
    assert kept_means(path, _answer(-1.0, -1.0), 4, 4)(asked[:4]) == [-1.0, -1.0, 0.25, 0.375]


@pytest.mark.parametrize("raw", [b"", b'{"one":{"batch":0,', b"[1]", b"\xff\xfe", b'{"one":0.5}'])
def test_a_file_that_is_torn_or_another_is_not_passed_over(
    path: Path, asked: list[Experience], raw: bytes
) -> None:
    path.write_bytes(raw)
    with pytest.raises(UnavailableError, match=r"put the file back .* move the file elsewhere"):
        kept_means(path, _answer(0.5), 0, 3)(asked[:1])
    assert path.read_bytes() == raw
    path.rename(path.with_name("elsewhere"))
    assert kept_means(path, _answer(0.5), 0, 3)(asked[:1]) == [0.5]


def test_a_file_that_cannot_be_read_now_is_not_passed_over(
    path: Path, asked: list[Experience]
) -> None:
    path.mkdir()
    with pytest.raises(UnavailableError, match="cannot be read"):
        kept_means(path, _answer(0.5), 0, 3)(asked[:1])
