"""A version serves on the base that it was learned on, and on no other that looks like it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from msgspec.structs import replace

from contracts import base_identity
from contracts.base_identity import identity_of
from contracts.clock import ManualClock
from contracts.errors import EngineError, ManifestError
from contracts.events import Candidate
from contracts.manifest import Manifest, read_manifest
from contracts.settings import Policy
from serving import served_base
from serving.rollout_adapters import Adapters, BrokenVersionError
from tests.serving.rollout_stage import Stage
from tests.stream_events import NOON

ELSEWHERE = "sha256:" + "0" * 64


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def adapters(stage: Stage, model: str) -> Adapters:
    settings = replace(stage.settings, policy=Policy(name="desk", model=model))
    return Adapters(stage.engine, settings, ManualClock(NOON), Event())


def learned_on(stage: Stage, base: str) -> Candidate:
    path, version = stage.version(base=base)
    return Candidate(version=version, sequence=1, location=str(path))


def elsewhere(stage: Stage) -> Manifest:
    """Return the manifest of a version that was learned on a base that is nowhere here."""
    path, _ = stage.version(base=ELSEWHERE)
    return read_manifest(path)[1]


def test_a_version_of_another_base_is_refused_before_the_engine_hears_of_it(
    stage: Stage, base: Path
) -> None:
    serving = adapters(stage, str(base))
    own = learned_on(stage, identity_of(base))
    serving.admit(own, ())
    other = learned_on(stage, ELSEWHERE)
    with pytest.raises(ManifestError, match=r"was learned on base sha256:0000.* under another"):
        serving.admit(other, (own,))
    assert stage.engine.loads == [own.version]
    serving.close()


def test_a_version_in_service_is_not_loaded_on_a_base_that_was_changed(
    stage: Stage, base: Path
) -> None:
    serving = adapters(stage, str(base))
    own = learned_on(stage, identity_of(base))
    serving.admit(own, ())
    with (base / "config.json").open("a") as file:
        file.write("\n")
    stage.engine.adapters.clear()  # it restarted
    with pytest.raises(BrokenVersionError, match="was learned on base"):
        serving.ensure((own,))
    serving.close()


@pytest.mark.parametrize(
    ("model", "learned", "served"),
    [
        ("", ELSEWHERE, True),
        ("HuggingFaceTB/SmolLM2", "HuggingFaceTB/SmolLM2@c0ffee", True),
        ("HuggingFaceTB/SmolLM2", "Qwen/Qwen3@c0ffee", False),
        ("HuggingFaceTB/SmolLM2", ELSEWHERE, True),
        ("a directory", "HuggingFaceTB/SmolLM2@c0ffee", True),
    ],
)
def test_what_is_known_by_name_is_compared_by_name_and_what_cannot_be_told_passes(
    stage: Stage, base: Path, model: str, learned: str, served: bool
) -> None:
    serving = adapters(stage, str(base) if model == "a directory" else model)
    candidate = learned_on(stage, learned)
    if served:
        serving.admit(candidate, ())
    else:
        with pytest.raises(ManifestError, match=r"policy\.model is HuggingFaceTB/SmolLM2;"):
            serving.admit(candidate, ())
    serving.close()


def test_weights_are_read_again_only_where_a_file_has_changed(
    stage: Stage, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(directory: Path, before_each: Callable[[], None]) -> str:
        read.append(directory)
        return base_identity.identity_of(directory, before_each)

    monkeypatch.setattr(served_base, "identity_of", counted)
    serving = adapters(stage, str(base))
    for _ in range(3):
        serving.admit(learned_on(stage, identity_of(base)), ())
    assert len(read) == 1
    (base / "model.safetensors").touch()
    serving.admit(learned_on(stage, identity_of(base)), ())
    assert len(read) == 2
    serving.close()


def test_a_base_that_cannot_be_read_is_no_verdict_on_a_version(stage: Stage, base: Path) -> None:
    serving = adapters(stage, str(base))
    own = learned_on(stage, identity_of(base))
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to(base / "nowhere")
    with pytest.raises(EngineError, match=r"policy\.model .* cannot be read"):
        serving.admit(own, ())
    serving.close()


def test_a_stop_ends_the_reading_of_weights(stage: Stage, base: Path) -> None:
    stopping = Event()
    stopping.set()
    with pytest.raises(EngineError, match="stopped while reading"):
        served_base.ServedBase(str(base), stopping).check(elsewhere(stage))


def test_full_weights_take_the_bases_place_whatever_they_were_learned_on(
    stage: Stage, base: Path
) -> None:
    serving = adapters(stage, str(base))
    path, version = stage.version(form="full")
    whole = Candidate(version=version, sequence=1, form="full", location=str(path))
    serving.admit(whole, ())
    assert stage.engine.full == version
    serving.close()


def test_a_path_that_is_nothing_here_is_told_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "serving"):
        unseen = served_base.ServedBase("/models/elsewhere", Event())
        unseen.check(elsewhere(stage))
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "policy.model /models/elsewhere is no directory here"
    ]
