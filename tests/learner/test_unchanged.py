"""What a learner may not go on from with other settings than it was learned with."""

from __future__ import annotations

import shutil

import pytest
from msgspec.structs import replace

from contracts.errors import SettingsError
from contracts.events import BASE_VERSION
from contracts.settings import Settings
from learner.evaluation import release_evidence
from learner.progress import released
from learner.publish import publish
from learner.resume import check_unchanged
from tests.learner.learning import MakeSample, learned


def test_what_was_learned_is_not_gone_on_from_with_another_scale_or_other_judges(
    settings: Settings, make_sample: MakeSample
) -> None:
    """The same adapters would be another policy, and who taught it would judge it."""
    train, progress = learned(settings, make_sample)
    evidence = release_evidence(train.policy, progress, settings)
    made = publish(settings, train.policy, progress, evidence)
    progress = released(progress, made.version)
    check_unchanged(settings, progress)
    alpha, share = 4.0 * settings.learner.lora_alpha, settings.policy.judge_share + 0.25
    changes = (
        (
            replace(settings, learner=replace(settings.learner, lora_alpha=alpha)),
            f"alpha is {alpha:g}",
        ),
        (
            replace(settings, policy=replace(settings.policy, judge_share=share)),
            f"share is {share:g}",
        ),
    )
    for other, said in changes:
        with pytest.raises(SettingsError, match=f"{said}, .*set it back"):
            check_unchanged(other, progress)
        check_unchanged(other, replace(progress, parent=BASE_VERSION))
    shutil.rmtree(made.directory)
    for other, _ in changes:
        check_unchanged(other, progress)  # nothing says with what it was learned
