"""What a version depends on is in its manifest, and a replay gets it back from there."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from contracts.events import Sample
from contracts.settings import Settings, Watch
from learner.adapters import load_policy
from learner.evaluation import release_evidence
from learner.progress import Progress
from learner.publish import OTHERS_THAT_MATTER, publish
from learner.version_line import Link, settings_of


def test_the_settings_that_a_version_depends_on_come_back_whatever_is_set_now(
    settings: Settings, make_sample: Callable[..., Sample]
) -> None:
    """Those that its manifest does not name, as in one of an earlier release, stay as they are."""
    watch = Watch(
        refuse_actions=("no",),
        clarify_actions=("which", "what"),
        refuse_patterns=("cannot help",),
        clarify_patterns=("which .* mean",),
    )
    then = replace(
        settings,
        engine=replace(settings.engine, max_model_len=61),
        streams=replace(settings.streams, max_open_decisions=17),
        policy=replace(settings.policy, judge_share=0.125),
        gate=replace(settings.gate, evaluation_samples=19, level="answer", watch=watch),
        learner=replace(settings.learner, learning_rate=0.5),
    )
    policy, moment = load_policy(settings), make_sample(0).decided_at
    progress = Progress(
        policy="assistant", base=policy.base, as_of=moment, newest_feedback_time=moment
    )
    made = publish(then, policy, progress, release_evidence(policy, progress, then))
    link = Link(made.version, made.directory, made.manifest)

    assert settings_of(settings, link) == then

    config = {k: v for k, v in made.manifest.config.items() if k not in OTHERS_THAT_MATTER}
    old = Link(made.version, made.directory, replace(made.manifest, config=config))
    assert settings_of(settings, old) == replace(settings, learner=then.learner)
