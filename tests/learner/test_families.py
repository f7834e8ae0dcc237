"""Every family learns, is kept, and serves what it learned, through the same code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from contracts.events import BASE_VERSION, Sample, Sampling
from contracts.settings import Policy as PolicySettings
from contracts.settings import Settings
from learner import checkpoint
from learner.adapters import load_policy, save_adapter
from learner.buckets import TokenSequence
from learner.experience import Experience, experience_of
from learner.progress import Progress, advance
from learner.train_state import TrainState, new_train_state
from serving.generation import Job, LocalModel
from tests.learner.families import FAMILIES, OTHERS, make_family

MAX = 64
MakeSample = Callable[..., Sample]


@pytest.fixture(params=[*FAMILIES, *OTHERS])
def on_family(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Settings:
    """Settings on a tiny model of each family."""
    directory = make_family(request.param, tmp_path / "base")
    return msgspec.structs.replace(settings, policy=PolicySettings(model=str(directory)))


def _logged(state: TrainState, make_sample: MakeSample, first: int) -> list[Experience]:
    """Answers with the log-probabilities of the policy as it is."""
    fresh: list[Experience] = []
    for number in range(first, first + 8):
        one = experience_of(make_sample(number), offset=number)
        asked = TokenSequence(one.prompt_ids, one.token_ids)
        [logprobs] = state.policy.logprobs([asked], MAX)
        fresh.append(msgspec.structs.replace(one, logprobs=tuple(logprobs)))
    return fresh


def test_an_update_is_learned_restored_from_its_checkpoint_and_goes_on_bit_for_bit(
    on_family: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    config = on_family.learner
    state = new_train_state(load_policy(on_family), config)
    before = {name: one.detach().clone() for name, one in state.policy.adapters().items()}

    begun = Progress(policy="assistant", base=state.policy.base)

    progress = advance(state, begun, _logged(state, make_sample, 0), on_family)

    assert progress.stats.used == 8
    assert 0.0 < progress.stats.grad_norm < 1e3
    assert any(not torch.equal(one, before[n]) for n, one in state.policy.adapters().items())
    checkpoint.save(tmp_path / "checkpoints", state, progress, 1)
    restored = new_train_state(load_policy(on_family), config)
    assert checkpoint.restore(tmp_path / "checkpoints", restored) == progress
    for one in (state, restored):
        advance(one, progress, _logged(one, make_sample, 8), on_family)
    for name, parameter in state.policy.adapters().items():
        assert torch.equal(parameter, restored.policy.adapters()[name])


def test_the_transformers_engine_serves_what_was_learned_with_the_same_probabilities(
    on_family: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    state = new_train_state(load_policy(on_family), on_family.learner)
    progress = Progress(policy="assistant", base=state.policy.base)
    for turn in range(2):
        progress = advance(state, progress, _logged(state, make_sample, 8 * turn), on_family)
    saved = tmp_path / "adapter"
    saved.mkdir()
    save_adapter(state.policy, saved)
    engine = LocalModel(on_family.policy.model, MAX)
    engine.load_adapter("learned", saved)

    for model in ("learned", BASE_VERSION):
        answers = [_answer(engine, model, prompt) for prompt in ((9, 30, 12), (40,))]
        asked = [TokenSequence(prompt, ids, 1.3) for prompt, ids, _ in answers]
        wanted = state.policy.logprobs(asked, MAX, adapted=model == "learned")
        for (_, _, logprobs), row in zip(answers, wanted, strict=True):
            assert logprobs == pytest.approx(row, abs=2e-5)


def _answer(
    engine: LocalModel, model: str, prompt: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], list[float]]:
    """Prompt, tokens and log-probabilities of an answer drawn by the engine."""
    tokens: list[int] = []
    logprobs: list[float] = []

    def emit(_text: str, token: int, logprob: float, _reason: str | None) -> None:
        tokens.append(token)
        logprobs.append(logprob)

    sampling = Sampling(temperature=1.3, max_tokens=20, seed=5)
    engine.generate(model, [Job(list(prompt), sampling, emit, lambda: False)])
    return prompt, tuple(tokens), logprobs
