"""``headrace reward-model`` shows what a reward model learned and how far it can be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from console.main import main
from console.reward_model import RewardModelView, reward_model_text
from contracts.manifest import Manifest, hash_files, sign_manifest, write_manifest
from contracts.manifest import OffsetRange as Offsets
from contracts.signing import signing_key
from learner.calibration import Calibration, Errors
from learner.raters import proportion, strangers
from learner.reward_card import LessonCounts, RewardModelCard, RewardRecipe, write_card
from tests.console.story import START
from tests.signing_keys import new_key

ERRORS = Errors(
    accuracy=proportion(np.repeat([1.0, 0.0], [61, 29]), strangers(90)),
    ece=0.031,
    brier=0.21,
    raw_ece=0.112,
    raw_brier=0.24,
    spread=0.07,
)
CARD = RewardModelCard(
    base="sha256:b",
    blocks=15,
    adapted=5,
    recipe=RewardRecipe(),
    lessons=LessonCounts(
        trained_rewards=420, trained_pairs=30, calibrated_rewards=90, calibrated_pairs=6
    ),
    steps=29,
    planned_steps=29,
    calibration=Calibration(0.8, -0.1),
    on_rewards=ERRORS,
    on_pairs=None,
)


@pytest.fixture
def directory(state_dir: Path) -> Path:
    key = signing_key(new_key(state_dir))
    made = state_dir / "made"
    made.mkdir(parents=True)
    write_card(made, CARD)
    manifest = Manifest(
        policy="assistant",
        sequence=2,
        form="reward-model",
        base="sha256:b",
        parent="p" * 64,
        as_of=START,
        newest_feedback_time=START,
        trained_on=(Offsets(topic="samples", partition=0, first=10, next=700),),
        samples=450,
        config={},
        code="test",
        files=hash_files(made),
    )
    named = made.with_name(write_manifest(made, manifest))
    sign_manifest(made, key)
    return made.rename(named)


def _run(state_dir: Path, *words: str, **environment: str) -> Result:
    environment = {"HEADRACE_STATE_DIR": str(state_dir), **environment}
    return CliRunner().invoke(main, ["reward-model", *words], env=environment)


def test_a_reward_model_is_shown_with_its_lessons_and_errors(
    state_dir: Path, directory: Path
) -> None:
    found = _run(state_dir, str(directory))
    assert found.exit_code == 0, found.output
    assert f"reward model {directory.name[:12]} (number 2 of assistant, after pppppppppppp)" in (
        found.output
    )
    assert "420 rewarded answers and 30 pairs, samples 10 to 699" in found.output
    assert "0.678  0.576 to 0.765  0.031" in found.output
    named = _run(state_dir, "--json", HEADRACE_LEARNER__REWARD_MODEL=str(directory))
    assert json.loads(named.output)["card"]["on_rewards"]["ece"] == ERRORS.ece


def test_one_that_is_not_there_or_not_what_was_signed_is_told(
    state_dir: Path, directory: Path
) -> None:
    assert "learner.reward_model is empty" in _run(state_dir).output
    card = directory / "reward_model.json"
    card.write_bytes(card.read_bytes().replace(b"0.031", b"0.001"))
    changed = _run(state_dir, str(directory))
    assert changed.exit_code != 0
    assert "differ from the manifest" in changed.output
    card.unlink()
    assert "no reward model's card" in _run(state_dir, str(directory)).output


def test_an_accuracy_that_was_not_measured_is_no_number() -> None:
    card = msgspec.structs.replace(CARD, on_rewards=msgspec.structs.replace(ERRORS, accuracy=None))
    view = RewardModelView(
        version="v" * 64,
        number=1,
        parent="base",
        policy="assistant",
        as_of=START,
        first_offset=0,
        next_offset=9,
        card=card,
    )
    [row] = [line for line in reward_model_text(view).splitlines() if "rewarded answers  " in line]
    assert row.split()[:6] == ["rewarded", "answers", "-", "-", "-", "0.031"]
