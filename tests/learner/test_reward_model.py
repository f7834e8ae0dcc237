"""A reward model learns what was rewarded, says how unsure it is, and is loaded as it was made."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from contracts.errors import ManifestError, SettingsError
from contracts.manifest import read_manifest
from contracts.settings import Settings
from contracts.signing import signing_key
from learner.buckets import TokenSequence, bucket_of
from learner.directory import write_signed
from learner.policy import Policy
from learner.reward_card import CARD, RewardRecipe, read_card
from learner.reward_fitting import Fitted, Slices, fit, sliced
from learner.reward_lessons import Read
from learner.reward_model import (
    WEIGHTS,
    RewardHeads,
    RewardModel,
    bucket_states,
    cut,
    load_reward_model,
)
from learner.reward_training import Pair, Rated, RewardLesson, lesson_weights
from learner.reward_version import new_trunk, shape, write_version
from tests.learner.conftest import START
from tests.signing_keys import new_key

RECIPE = RewardRecipe(members=4, max_tokens=32, rank=4, alpha=8.0, batch=8)
GOOD = 20
"""The token that answers are liked for."""


def _answer(draw: random.Random, *, good: bool) -> TokenSequence:
    prompt = tuple(draw.randrange(24, 48) for _ in range(draw.randint(2, 9)))
    words = [draw.randrange(24, 48) for _ in range(draw.randint(2, 6))]
    if good:
        words[draw.randrange(len(words))] = GOOD
    return TokenSequence(prompt, (*words, 3))


def _lessons(count: int, seed: int = 0) -> list[RewardLesson]:
    """Rewarded answers and pairs by turns, of forty users; one thumb in twenty is mistaken."""
    found: list[RewardLesson] = []
    draw = random.Random(seed)
    for number in range(count):
        user = f"user-{draw.randrange(40)}"
        good = number % 4 < 2
        if number % 2:
            chosen, rejected = _answer(draw, good=True), _answer(draw, good=False)
            found.append(
                Pair(user, chosen, TokenSequence(chosen.prompt_ids, rejected.response_ids))
            )
        else:
            sign = (1.0 if good else -1.0) * (-1.0 if draw.random() < 0.05 else 1.0)
            found.append(Rated(user, _answer(draw, good=good), sign))
    return found


@pytest.fixture(scope="module")
def fitted(tiny_model: Path) -> tuple[Policy, Fitted]:
    trunk = new_trunk(str(tiny_model), RECIPE)
    return trunk, fit(trunk, sliced(_lessons(240), RECIPE), RECIPE)


@pytest.fixture
def read() -> Read:
    return Read(
        lessons=(), first_offset=3, next_offset=400, as_of=START, newest_feedback_time=START
    )


@pytest.fixture
def written(settings: Settings, fitted: tuple[Policy, Fitted], read: Read, tmp_path: Path) -> Path:
    return write_version(settings, tmp_path / "models", *fitted, read, RECIPE)


def test_what_was_liked_is_told_on_the_newest_slice_of_both_kinds(
    fitted: tuple[Policy, Fitted],
) -> None:
    found = fitted[1]
    assert found.on_rewards is not None
    assert found.on_pairs is not None
    assert found.on_rewards.accuracy is not None
    assert found.on_pairs.accuracy is not None
    assert found.on_rewards.accuracy.lower > 0.6
    assert found.on_pairs.accuracy.lower > 0.6
    assert found.on_rewards.brier < 0.25  # what one half for everything would have
    assert (found.steps, found.planned_steps) == (21, 21)


def test_expected_rewards_are_bounded_and_the_conservative_one_is_below_the_mean(
    written: Path, settings: Settings
) -> None:
    model = load_reward_model(settings, written)
    draw = random.Random(5)
    liked = model.score([_answer(draw, good=True) for _ in range(30)])
    other = model.score([_answer(draw, good=False) for _ in range(30)])
    for one in (*liked, *other):
        assert -1.0 <= one.conservative <= one.mean <= 1.0
        assert one.std > 0.0
        assert one.conservative == pytest.approx(max(one.mean - one.std, -1.0))
    assert np.mean([e.mean for e in liked]) > np.mean([e.mean for e in other]) + 0.3


def test_the_same_lessons_and_seed_make_the_same_version_and_another_seed_another(
    settings: Settings, written: Path, tiny_model: Path, read: Read, tmp_path: Path
) -> None:
    names = []
    for seed in (0, 1):
        recipe = msgspec.structs.replace(RECIPE, seed=seed)
        trunk = new_trunk(str(tiny_model), recipe)
        again = fit(trunk, sliced(_lessons(240), recipe), recipe)
        names.append(write_version(settings, tmp_path / str(seed), trunk, again, read, recipe).name)
    assert names[0] == written.name != names[1]


def test_a_version_knows_the_one_before_it(
    settings: Settings, written: Path, fitted: tuple[Policy, Fitted], read: Read
) -> None:
    later = msgspec.structs.replace(read, next_offset=500)
    second = write_version(settings, written.parent, *fitted, later, RECIPE)
    version, manifest = read_manifest(second)
    assert (version, manifest.parent, manifest.sequence) == (second.name, written.name, 2)
    assert (manifest.form, manifest.trained_on[0].next) == ("reward-model", 500)


def test_a_loaded_model_says_what_it_said_when_it_was_made(
    written: Path, settings: Settings, fitted: tuple[Policy, Fitted]
) -> None:
    loaded = load_reward_model(settings, written)
    draw = random.Random(9)
    answers = [_answer(draw, good=draw.random() < 0.5) for _ in range(9)]
    own = RewardModel(*_parts(fitted), read_card(written), written.name)
    assert loaded.score(answers) == own.score(answers)
    assert loaded.version == written.name


def test_the_errors_told_are_those_of_what_the_model_says(
    written: Path, settings: Settings, fitted: tuple[Policy, Fitted]
) -> None:
    told = [one for one in sliced(_lessons(240), RECIPE).told if isinstance(one, Rated)]
    said = load_reward_model(settings, written).score([one.answer for one in told])
    errors_n = [(e.mean - one.reward) ** 2 / 4.0 for e, one in zip(said, told, strict=True)]
    assert fitted[1].on_rewards is not None
    assert fitted[1].on_rewards.brier == pytest.approx(float(np.mean(errors_n)), abs=1e-5)


def _parts(fitted: tuple[Policy, Fitted]) -> tuple[Policy, RewardHeads]:
    return fitted[0], fitted[1].heads


@pytest.mark.parametrize("name", [WEIGHTS, CARD, "manifest.json"])
def test_a_model_whose_files_changed_is_not_loaded(
    written: Path, settings: Settings, name: str
) -> None:
    raw = (written / name).read_bytes()
    (written / name).write_bytes(raw.replace(b"4", b"5", 1))
    with pytest.raises(ManifestError):
        load_reward_model(settings, written)


def test_weights_that_do_not_fit_the_card_are_refused_with_the_cure(
    written: Path, settings: Settings, tmp_path: Path
) -> None:
    def fill(directory: Path) -> None:
        (directory / CARD).write_bytes((written / CARD).read_bytes())
        tensors = load_file(written / WEIGHTS)
        tensors.pop("heads/bias_k")
        save_file(tensors, directory / WEIGHTS)

    manifest = read_manifest(written)[1]
    torn = write_signed(tmp_path / "torn", manifest, signing_key(settings), fill)

    with pytest.raises(ManifestError, match=r"(?s)does not fit its card \(.*; make another model"):
        load_reward_model(settings, torn)


def test_a_model_that_nobody_trusted_signed_or_of_another_base_is_not_loaded(
    written: Path, settings: Settings, tmp_path: Path
) -> None:
    stranger = new_key(tmp_path / "stranger")
    elsewhere = msgspec.structs.replace(stranger, policy=settings.policy)
    with pytest.raises(ManifestError, match="not trusted"):
        load_reward_model(elsewhere, written)

    other = tmp_path / "other-base"
    other.mkdir()
    for path in Path(settings.policy.model).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "generation_config.json").write_text("{}")
    policy = msgspec.structs.replace(settings.policy, model=str(other))
    with pytest.raises(SettingsError, match="belongs to base"):
        load_reward_model(msgspec.structs.replace(settings, policy=policy), written)


def test_a_model_of_another_policy_is_refused(written: Path, settings: Settings) -> None:
    policy = msgspec.structs.replace(settings.policy, name="german")
    with pytest.raises(SettingsError, match=r"belongs to policy 'assistant'.*segment's"):
        load_reward_model(msgspec.structs.replace(settings, policy=policy), written)


def test_blocks_and_the_models_own_modules_give_the_same_states_and_gradients(
    tiny_model: Path,
) -> None:
    """Of a trunk whose lower block has no adapters."""
    draw = random.Random(3)
    bucket = bucket_of([_answer(draw, good=True) for _ in range(5)])
    found = []
    for own_modules in (False, True):
        trunk = new_trunk(str(tiny_model), msgspec.structs.replace(RECIPE, adapted=0.5))
        for parameter in trunk.adapters().values():
            parameter.data += 0.1  # B is zero at first, and A without a gradient
        assert trunk.blocks is not None
        if own_modules:
            trunk = Policy(trunk.model, trunk.tokenizer, trunk.base, trunk.rank, trunk.alpha)
        states_bh = bucket_states(trunk, bucket)
        states_bh.square().sum().backward()
        gradients = [parameter.grad for parameter in trunk.adapters().values()]
        assert len(gradients) == 14  # of one block of two
        found.append((states_bh, *gradients))
    for mine, theirs in zip(*found, strict=True):
        assert mine is not None
        assert theirs is not None
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


def test_the_newest_lessons_are_kept_out_of_training() -> None:
    lessons = _lessons(100)
    found = sliced(lessons, RECIPE)
    assert (len(found.trained), len(found.calibrated), len(found.told)) == (70, 15, 15)
    assert [*found.trained, *found.calibrated, *found.told] == lessons


def test_members_draw_users_and_a_busy_user_has_a_bounded_say() -> None:
    users = ["busy"] * 200 + [f"user-{n}" for n in range(50)]
    weights_nk = lesson_weights(users, RECIPE)
    assert weights_nk.shape == (250, 4)
    assert (weights_nk[:200] == weights_nk[0]).all()  # a user is drawn as a whole
    drawn_k = weights_nk[:200].sum(0)
    assert set((drawn_k / RECIPE.user_lessons).round().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert not torch.equal(weights_nk[200:, 0], weights_nk[200:, 1])
    alone = lesson_weights(["only"] * 3, msgspec.structs.replace(RECIPE, members=64))
    assert (alone.sum(0) > 0.0).all()  # no member is left without a lesson


def test_training_ends_when_its_time_is_over_and_says_so(tiny_model: Path) -> None:
    left = iter([5.0, 1.0, -0.1])
    found = fit(
        new_trunk(str(tiny_model), RECIPE),
        sliced(_lessons(100), RECIPE),
        RECIPE,
        lambda: next(left),
    )
    assert (found.steps, found.planned_steps) == (2, 9)


def test_a_slice_without_one_kind_has_no_errors_of_it(tiny_model: Path) -> None:
    pairs = tuple(lesson for lesson in _lessons(80) if isinstance(lesson, Pair))
    found = fit(
        new_trunk(str(tiny_model), RECIPE), Slices(pairs[:20], pairs[20:30], pairs[30:]), RECIPE
    )
    assert found.on_rewards is None
    assert found.on_pairs is not None
    assert found.lessons.trained_rewards == 0


def test_long_answers_keep_their_beginning_and_long_prompts_their_end() -> None:
    long = TokenSequence(tuple(range(100)), tuple(range(200, 300)))
    assert cut(long, 32) == TokenSequence(tuple(range(84, 100)), tuple(range(200, 216)))
    for whole in (TokenSequence((1, 2), (3,)), TokenSequence((1, 2), tuple(range(200, 230)))):
        assert cut(whole, 32) == whole
    most = cut(TokenSequence((1, 2), tuple(range(200, 300))), 32)
    assert most == TokenSequence((1, 2), tuple(range(200, 230)))
    assert cut(TokenSequence((), (5,) * 40), 32) == TokenSequence((), (5,) * 32)


def test_half_of_a_deep_base_is_used_and_all_of_a_shallow_one() -> None:
    assert shape(30, RewardRecipe()) == (15, 5)
    assert shape(2, RewardRecipe()) == (2, 1)
    assert shape(6, RewardRecipe()) == (4, 2)
