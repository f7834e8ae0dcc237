"""Answers drawn together: each as it would be alone, and none longer than it has to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contracts.events import Sampling
from contracts.processor import KERNELS_KEPT
from serving.generation import Job, LocalModel

LONGEST = (9, 1, 4, 4)


class Heard:
    """What one job emitted."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []

    def emit(self, _text: str, token: int, logprob: float, _reason: str | None) -> None:
        """Take one more token."""
        self.tokens.append(token)
        self.logprobs.append(logprob)


def _jobs(heard: list[Heard]) -> list[Job]:
    sampling = [Sampling(max_tokens=most, seed=n) for n, most in enumerate(LONGEST)]
    return [
        Job([40 + n] * (n + 1), one, to.emit, lambda: False)
        for n, (one, to) in enumerate(zip(sampling, heard, strict=True))
    ]


def test_an_answer_that_has_ended_takes_no_part_in_later_passes(tiny_model: Path) -> None:
    model = LocalModel(str(tiny_model), 64)
    rows: list[int] = []
    head = model._base.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[0]))
    together, alone = ([Heard() for _ in LONGEST] for _ in range(2))

    model.generate("base", _jobs(together))

    lengths = [len(one.tokens) for one in together]
    assert rows == [sum(length > at for length in lengths) for at in range(max(lengths))]
    assert len(set(lengths)) > 1
    for job in _jobs(alone):
        model.generate("base", [job])
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_kernels_for_each_length_of_a_prompt_are_not_kept(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KERNELS_KEPT:
        monkeypatch.delenv(name, raising=False)
    LocalModel(str(tiny_model), 64)
    assert {name: os.environ.get(name) for name in KERNELS_KEPT} == KERNELS_KEPT
