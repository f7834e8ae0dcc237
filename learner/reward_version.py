"""Writes a reward model as policy versions are: a directory whose signed manifest pins it."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import msgspec
import torch

from contracts.clock import Clock
from contracts.errors import ManifestError, SettingsError
from contracts.events import BASE_VERSION
from contracts.manifest import Manifest, OffsetRange, read_manifest
from contracts.settings import Settings
from contracts.signing import signing_key
from contracts.topics import SAMPLES
from learner.adapters import Adapting, adapt
from learner.base_model import block_count
from learner.directory import appeared, clear_partial, write_signed
from learner.policy import Policy
from learner.publish import code_version
from learner.reward_card import RewardModelCard, RewardRecipe, write_card
from learner.reward_fitting import Fitted, fit, sliced
from learner.reward_lessons import LEAST_LESSONS, Read, read_lessons
from learner.reward_model import FORM, save_weights

LEAST_BLOCKS = 4
"""A shallow base is used whole."""

_log = logging.getLogger("learner")


def make_reward_model(
    settings: Settings, recipe: RewardRecipe, limit: int, out: Path, clock: Clock
) -> Path:
    """Train on the newest ``limit`` lessons in the log; return the directory of the new version.

    Raises UnavailableError when too little was rated, DeadlineError when the broker goes away,
    SettingsError without a key to sign with, for a base that takes no adapters, and for options
    that leave nothing to learn.
    """
    _check_options(recipe, limit)
    signing_key(settings)  # a missing key is told before the work
    torch.set_num_threads(recipe.threads)
    trunk = new_trunk(settings.policy.model, recipe)
    read = read_lessons(settings, trunk.tokenizer, trunk.vocabulary_size, limit)
    _log.info(
        "%d lessons, offsets %d to %d", len(read.lessons), read.first_offset, read.next_offset
    )
    deadline = clock.monotonic() + recipe.seconds
    fitted = fit(trunk, sliced(read.lessons, recipe), recipe, lambda: deadline - clock.monotonic())
    return write_version(settings, out, trunk, fitted, read, recipe)


def _check_options(recipe: RewardRecipe, limit: int) -> None:
    """Raise SettingsError for an option of the command with which no model can be made."""
    if limit < LEAST_LESSONS:
        raise SettingsError(
            f"--lessons is {limit}; give {LEAST_LESSONS} or more, for with fewer there is too "
            "little to calibrate on"
        )
    if recipe.epochs < 1:
        raise SettingsError(f"--epochs is {recipe.epochs}; give 1 or more")
    if not 0.0 < recipe.seconds < math.inf:
        raise SettingsError(f"--seconds is {recipe.seconds}; give a finite number above 0")


def new_trunk(model: str, recipe: RewardRecipe) -> Policy:
    """Load the part of a base that a recipe asks for, with fresh adapters."""
    blocks, adapted = shape(block_count(model), recipe)
    return adapt(
        model,
        Adapting(
            rank=recipe.rank,
            alpha=recipe.alpha,
            seed=recipe.seed,
            blocks=blocks,
            adapted=adapted,
        ),
    )


def shape(blocks: int, recipe: RewardRecipe) -> tuple[int, int]:
    """Return how many of a base's blocks are used, and how many of these have adapters."""
    kept = min(max(math.ceil(recipe.kept * blocks), LEAST_BLOCKS), blocks)
    return kept, max(math.ceil(recipe.adapted * kept), 1)


def write_version(
    settings: Settings, out: Path, trunk: Policy, fitted: Fitted, read: Read, recipe: RewardRecipe
) -> Path:
    """Write the model below ``out``, signed, after the newest that lies there; return where."""
    blocks, adapted = shape(block_count(settings.policy.model), recipe)
    card = RewardModelCard(
        base=trunk.base,
        blocks=blocks,
        adapted=adapted,
        recipe=recipe,
        lessons=fitted.lessons,
        steps=fitted.steps,
        planned_steps=fitted.planned_steps,
        calibration=fitted.calibration,
        on_rewards=fitted.on_rewards,
        on_pairs=fitted.on_pairs,
    )
    parent, sequence = _newest(out)
    manifest = Manifest(
        policy=settings.policy.name,
        sequence=sequence + 1,
        form=FORM,
        base=trunk.base,
        parent=parent,
        as_of=read.as_of,
        newest_feedback_time=read.newest_feedback_time,
        trained_on=(
            OffsetRange(
                topic=SAMPLES.name,
                partition=0,
                first=read.first_offset,
                next=read.next_offset,
            ),
        ),
        samples=fitted.lessons.trained_rewards + fitted.lessons.trained_pairs,
        config=msgspec.to_builtins(recipe),
        code=code_version(),
        files={},
    )

    def fill(directory: Path) -> None:
        save_weights(trunk, fitted.heads, directory)
        write_card(directory, card)

    clear_partial(out)
    return write_signed(out, manifest, signing_key(settings), fill)


def _newest(out: Path) -> tuple[str, int]:
    """Return id and number of the newest reward model below a folder, or the base's."""
    found = [(BASE_VERSION, 0)]
    for directory in appeared(out):
        try:
            version, manifest = read_manifest(directory)
        except ManifestError:
            continue
        if manifest.form == FORM:
            found.append((version, manifest.sequence))
    return max(found, key=lambda known: (known[1], known[0]))
