"""A disk that takes no more stops the learner with the cure, and what it had is whole."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.errors import DeadlineError, UnavailableError
from contracts.events import Sample
from contracts.manifest import file_sha256
from contracts.settings import Settings
from learner import checkpoint
from learner.directory import appear, no_crash
from learner.evaluation import release_evidence
from learner.experience import experience_of
from learner.kept_means import kept_means, means_path
from learner.publish import publish
from learner.version_state import published_before
from tests.learner.learning import learned
from tests.signing_keys import new_key

MakeSample = Callable[..., Sample]
REFUSED = r"cannot be written \(.*File too large.*free space on its disk.*start again"


@contextmanager
def _full_disk() -> Iterator[None]:
    """Let no file grow beyond a few bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    settings: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    """The tensors come first, and safetensors has an error of its own."""
    root = tmp_path / "checkpoints"
    train, progress = learned(settings, make_sample)
    checkpoint.save(root, train, progress, keep=1)
    with _full_disk(), pytest.raises(UnavailableError, match=f"{root} {REFUSED}"):
        checkpoint.save(root, train, replace(progress, batches=2), keep=1)
    assert checkpoint.restore(root, train) == progress
    assert [path.name for path in root.iterdir()] == ["000000001"]


def test_a_version_or_its_signature_that_cannot_be_written_is_made_when_it_can(
    settings: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    train, progress = learned(settings, make_sample)
    evidence = release_evidence(train.policy, progress, settings)
    saved = checkpoint.save(tmp_path / "checkpoints", train, progress, keep=1)
    state = file_sha256(saved / checkpoint.STATE)
    with _full_disk(), pytest.raises(UnavailableError, match=f"versions/assistant {REFUSED}"):
        publish(settings, train.policy, progress, evidence, state=state)
    made = publish(settings, train.policy, progress, evidence, state=state)
    rotated = new_key(settings.state_dir, "next")
    name = rotated.learner.signing_key_file
    other = replace(settings, learner=replace(settings.learner, signing_key_file=name))
    with _full_disk(), pytest.raises(UnavailableError, match=rf"manifest\.sig {REFUSED}"):
        published_before(other, saved)
    assert published_before(other, saved) == made


def test_users_means_that_cannot_be_written_are_those_from_before(
    make_sample: MakeSample, tmp_path: Path
) -> None:
    path = means_path(tmp_path / "assistant")
    asked = [experience_of(make_sample(number)) for number in range(2)]
    kept_means(path, lambda _: [0.5], 0, 3)(asked[:1])
    with _full_disk(), pytest.raises(UnavailableError, match=f"{path} {REFUSED}"):
        kept_means(path, lambda _: [0.25], 1, 3)(asked[1:])
    assert kept_means(path, lambda _: [0.75], 1, 3)(asked) == [0.5, 0.75]


@pytest.mark.parametrize(
    "fault", [FileNotFoundError(2, "No such file"), DeadlineError("no broker"), ValueError("wrong")]
)
def test_other_faults_stay_what_they_are(tmp_path: Path, fault: Exception) -> None:
    def fill(directory: Path) -> str:
        raise fault

    with pytest.raises(type(fault)) as found:
        appear(tmp_path, fill, no_crash)
    assert found.value is fault
