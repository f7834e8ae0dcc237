"""What a power cut tore is written again by the learner that makes it anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from contracts.errors import SettingsError, UnavailableError
from contracts.events import Sample
from contracts.manifest import file_sha256, read_manifest, verify, verify_signed
from contracts.settings import Settings
from contracts.signing import trusted_keys
from learner import checkpoint
from learner.adapters import ADAPTER_WEIGHTS
from learner.directory import PARTIAL_PREFIX, appear, no_crash
from learner.evaluation import release_evidence
from learner.experience import experience_of
from learner.progress import released
from learner.publish import publish
from learner.resume import check_log, restored
from learner.version_state import is_kept, published_before
from tests.learner.learning import learned
from tests.learner.small_reward_model import small_reward_model
from tests.signing_keys import new_key

MakeSample = Callable[..., Sample]


def test_a_torn_checkpoint_is_replaced_when_its_batch_is_learned_again(
    settings: Settings, make_sample: MakeSample, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "checkpoints"
    train, progress = learned(settings, make_sample)
    saved = checkpoint.save(root, train, progress, keep=1)
    state = (saved / checkpoint.STATE).read_bytes()
    for name in ("000000001", "000000009"):
        (root / name).mkdir(exist_ok=True)
        (root / name / checkpoint.STATE).write_bytes(state[:100])

    again, relearned = learned(settings, make_sample)
    assert restored(settings, root, again) is None
    assert "learning begins anew" in caplog.text
    checkpoint.save(root, again, relearned, keep=1)
    assert [path.name for path in root.iterdir()] == ["000000001"]
    assert checkpoint.restore(root, again) == progress


@pytest.mark.parametrize("name", [checkpoint.STATE, checkpoint.TENSORS])
def test_a_checkpoint_that_cannot_be_read_stops_the_learner_and_stays(
    settings: Settings, make_sample: MakeSample, tmp_path: Path, name: str
) -> None:
    root = tmp_path / "checkpoints"
    train, progress = learned(settings, make_sample)
    saved = checkpoint.save(root, train, progress, keep=2)
    whole = (saved / name).read_bytes()
    (saved / name).unlink()
    (saved / name).mkdir()  # root may read any file, but nobody reads a folder
    with pytest.raises(UnavailableError, match="may be sound"):
        restored(settings, root, train)
    (saved / name).rmdir()
    (saved / name).write_bytes(whole)
    assert restored(settings, root, train) == progress


def test_a_checkpoint_of_another_release_stops_the_learner_and_stays(
    settings: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    root = tmp_path / "checkpoints"
    train, progress = learned(settings, make_sample)
    path = checkpoint.save(root, train, progress, keep=1) / checkpoint.STATE
    state = msgspec.json.decode(path.read_bytes())
    state["progress"]["batches"] = "one"
    path.write_bytes(msgspec.json.encode(state))
    with pytest.raises(SettingsError, match="start the release that wrote it"):
        restored(settings, root, train)
    path.write_bytes(path.read_bytes()[:-1])
    assert restored(settings, root, train) is None


def test_a_torn_version_is_replaced_by_the_same_version(
    settings: Settings, make_sample: MakeSample
) -> None:
    train, progress = learned(settings, make_sample)
    evidence = release_evidence(train.policy, progress, settings)
    made = publish(settings, train.policy, progress, evidence)
    for path in sorted(made.directory.iterdir()):
        path.write_bytes(path.read_bytes()[:-1])
        assert publish(settings, train.policy, progress, evidence) == made
        assert verify(made.directory, made.version) == made.manifest
    (made.directory / "manifest.json").unlink()
    assert publish(settings, train.policy, progress, evidence) == made


def test_a_torn_signature_of_a_release_that_was_cut_off_is_made_again(
    settings: Settings, make_sample: MakeSample, tmp_path: Path
) -> None:
    train, progress = learned(settings, make_sample)
    saved = checkpoint.save(tmp_path / "checkpoints", train, progress, keep=1)
    evidence = release_evidence(train.policy, progress, settings)
    state = file_sha256(saved / checkpoint.STATE)
    made = publish(settings, train.policy, progress, evidence, state=state)
    signature = made.directory / "manifest.sig"
    whole = signature.read_bytes()
    for torn in (whole[:40], b"", None):
        signature.unlink() if torn is None else signature.write_bytes(torn)
        assert published_before(settings, saved) == made
        assert signature.read_bytes() == whole
        verify_signed(made.directory, made.version, trusted_keys(settings))
    assert [path.name for path in made.directory.parent.iterdir()] == [made.version]

    rotated = new_key(settings.state_dir, "next")
    mine = replace(
        settings,
        learner=replace(settings.learner, signing_key_file=rotated.learner.signing_key_file),
    )
    assert published_before(mine, saved) == made
    (settings.state_dir / "keys" / "learner.pub").unlink()
    verify_signed(made.directory, made.version, trusted_keys(settings))


def test_what_a_crash_left_unfinished_is_neither_a_version_nor_a_reward_model(
    settings: Settings, make_sample: MakeSample
) -> None:
    """Its number is taken by nothing, so no log is refused for it, and no model comes after it."""
    train, progress = learned(settings, make_sample)
    evidence = release_evidence(train.policy, progress, settings)
    made = publish(settings, train.policy, progress, evidence)
    partial = made.directory.with_name(f"{PARTIAL_PREFIX}7")
    made.directory.rename(partial)
    check_log(settings, settings.state_dir, progress, progress.next_offset + 1, 99)

    models = settings.state_dir / "models"
    first = small_reward_model(settings, make_sample, models)
    first.rename(models / f"{PARTIAL_PREFIX}7")
    again = read_manifest(small_reward_model(settings, make_sample, models))[1]
    assert (again.sequence, again.parent) == (1, "base")


def test_a_sound_directory_of_the_same_name_is_left_as_it_is(tmp_path: Path) -> None:
    def fill(directory: Path) -> str:
        (directory / "a").write_bytes(b"a")
        return "name"

    first = appear(tmp_path, fill, no_crash).stat().st_ino
    assert appear(tmp_path, fill, no_crash).stat().st_ino == first
    (tmp_path / "name" / "b").write_bytes(b"")
    assert appear(tmp_path, fill, no_crash).stat().st_ino != first
    assert [path.name for path in tmp_path.rglob("*")] == ["name", "a"]


def test_a_torn_parent_stops_no_release_and_is_not_compared_with(
    settings: Settings, make_sample: MakeSample, caplog: pytest.LogCaptureFixture
) -> None:
    train, progress = learned(settings, make_sample)
    judged = tuple(experience_of(make_sample(n, user_id=f"user-{n % 4}")) for n in range(40, 70))
    progress = replace(progress, evaluation=judged)
    evidence = release_evidence(train.policy, progress, settings)
    assert evidence.kl_to_parent is not None
    made = publish(settings, train.policy, progress, evidence)
    later = released(progress, made.version)
    assert release_evidence(train.policy, later, settings).kl_to_parent is not None

    weights = made.directory / ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    assert release_evidence(train.policy, later, settings).kl_to_parent is None
    assert f"no comparison with version {made.version[:12]}" in caplog.text


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, [8, 12, 14, 15]), (4, [4, 8, 10, 12, 13, 14, 15]), (0, [])]
)
def test_the_states_that_are_kept_grow_sparser_with_age(keep: int, kept: list[int]) -> None:
    assert [n for n in range(1, 16) if is_kept(n, 15, keep)] == kept
