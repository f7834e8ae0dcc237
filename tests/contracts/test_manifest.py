"""A version directory is loaded only when every byte is the one that was published."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from contracts.errors import ManifestError
from contracts.manifest import (
    MANIFEST_NAME,
    Manifest,
    OffsetRange,
    hash_files,
    read_manifest,
    verify,
    write_manifest,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def publish(directory: Path, **files: bytes) -> str:
    directory.mkdir(exist_ok=True)
    for name, raw in {"adapter_model.safetensors": b"\x01\x02\x03", **files}.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(raw)
    return write_manifest(directory, manifest(hash_files(directory)))


def manifest(files: dict[str, str]) -> Manifest:
    return Manifest(
        policy="assistant",
        sequence=1,
        form="lora",
        base="b" * 64,
        parent="base",
        as_of=NOON,
        newest_feedback_time=NOON,
        trained_on=(OffsetRange(topic="samples", partition=0, first=0, next=64),),
        samples=64,
        config={"lora_rank": 8},
        code="0.1.0",
        files=files,
    )


@pytest.fixture
def version(tmp_path: Path) -> tuple[Path, str]:
    directory = tmp_path / "version"
    return directory, publish(directory, **{"adapter_config.json": b"{}"})


def test_untouched_version_verifies(version: tuple[Path, str]) -> None:
    directory, name = version
    assert verify(directory, name) == read_manifest(directory)[1]
    assert read_manifest(directory)[0] == name


def test_same_content_has_the_same_id(tmp_path: Path) -> None:
    assert publish(tmp_path / "a") == publish(tmp_path / "b")
    assert publish(tmp_path / "a") != publish(tmp_path / "c", **{"extra.json": b"{}"})


def flip_a_bit(directory: Path) -> None:
    (directory / "adapter_model.safetensors").write_bytes(b"\x01\x02\x02")


def add_a_file(directory: Path) -> None:
    (directory / "extra.json").write_text("{}")


def add_a_nested_manifest(directory: Path) -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / MANIFEST_NAME).write_text("{}")


def remove_a_file(directory: Path) -> None:
    (directory / "adapter_config.json").unlink()


def rename_a_file(directory: Path) -> None:
    (directory / "adapter_config.json").rename(directory / "config.json")


def change_the_manifest(directory: Path) -> None:
    path = directory / MANIFEST_NAME
    path.write_text(path.read_text().replace('"samples": 64', '"samples": 65'))


def reformat_the_manifest(directory: Path) -> None:
    path = directory / MANIFEST_NAME
    path.write_bytes(msgspec.json.format(path.read_bytes(), indent=4))


def remove_the_manifest(directory: Path) -> None:
    (directory / MANIFEST_NAME).unlink()


@pytest.mark.parametrize(
    "tamper",
    [
        flip_a_bit,
        add_a_file,
        add_a_nested_manifest,
        remove_a_file,
        rename_a_file,
        change_the_manifest,
        reformat_the_manifest,
        remove_the_manifest,
    ],
)
def test_any_change_is_detected(version: tuple[Path, str], tamper: Callable[[Path], None]) -> None:
    directory, name = version
    tamper(directory)
    with pytest.raises(ManifestError):
        verify(directory, name)


def test_other_version_is_not_taken_for_this_one(version: tuple[Path, str]) -> None:
    directory, _ = version
    with pytest.raises(ManifestError, match="expected " + "0" * 64):
        verify(directory, "0" * 64)


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "x.PKL", "last.ckpt"])
def test_files_that_could_hold_pickled_code_are_refused(tmp_path: Path, name: str) -> None:
    identity = publish(tmp_path / "version", **{name: b"harmless"})
    with pytest.raises(ManifestError, match="only safetensors"):
        verify(tmp_path / "version", identity)


def test_manifest_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text('{"format": 2}')
    with pytest.raises(ManifestError, match="not a manifest"):
        read_manifest(tmp_path)


def nul(directory: Path) -> Path:
    return directory / "a\0b"


def over_long(directory: Path) -> Path:
    return directory / ("x" * 5000)


def a_file(directory: Path) -> Path:
    return directory / "adapter_config.json"


def directory_as_manifest(directory: Path) -> Path:
    (directory / MANIFEST_NAME).unlink()
    (directory / MANIFEST_NAME).mkdir()
    return directory


def pipe_as_manifest(directory: Path) -> Path:
    (directory / MANIFEST_NAME).unlink()
    os.mkfifo(directory / MANIFEST_NAME)
    return directory


def no_text(directory: Path) -> Path:
    (directory / MANIFEST_NAME).write_bytes(b'{"policy": "\xff\xfe"}')
    return directory


def deeply_nested(directory: Path) -> Path:
    path = directory / MANIFEST_NAME
    nested = '{"a": ' * 5000 + "1" + "}" * 5000
    path.write_text(path.read_text().replace('"config": {', f'"config": {{"x": {nested},'))
    return directory


@pytest.mark.parametrize(
    "spoil",
    [nul, over_long, a_file, directory_as_manifest, pipe_as_manifest, no_text, deeply_nested],
)
def test_whatever_is_no_version_is_a_manifest_error(
    version: tuple[Path, str], spoil: Callable[[Path], Path]
) -> None:
    directory, name = version
    with pytest.raises(ManifestError) as caught:
        verify(spoil(directory), name)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_what_cannot_be_read_is_a_manifest_error() -> None:
    with pytest.raises(ManifestError):
        verify(Path("/proc/self/mem"), "0" * 64)


def linked_weights(directory: Path) -> None:
    weights = directory / "adapter_model.safetensors"
    weights.rename(directory.parent / "elsewhere")
    weights.symlink_to(directory.parent / "elsewhere")


def linked_folder(directory: Path) -> None:
    (directory.parent / "folder").mkdir()
    (directory.parent / "folder" / "pytorch_model.bin").write_bytes(b"pickled")
    (directory / "folder").symlink_to(directory.parent / "folder")


def linked_to_itself(directory: Path) -> None:
    (directory / "loop.json").symlink_to(directory / "loop.json")


def pipe(directory: Path) -> None:
    os.mkfifo(directory / "model.bin")


def linked_manifest(directory: Path) -> None:
    (directory / MANIFEST_NAME).rename(directory.parent / "elsewhere")
    (directory / MANIFEST_NAME).symlink_to(directory.parent / "elsewhere")


@pytest.mark.parametrize(
    "place", [linked_weights, linked_folder, linked_to_itself, pipe, linked_manifest]
)
def test_only_regular_files_in_real_folders_make_a_version(
    version: tuple[Path, str], place: Callable[[Path], None]
) -> None:
    directory, name = version
    place(directory)
    with pytest.raises(ManifestError, match="neither a regular file nor a folder"):
        verify(directory, name)
