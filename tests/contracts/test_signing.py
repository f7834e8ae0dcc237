"""A version is loaded when a key that is trusted signed exactly this manifest, and only then."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.errors import ManifestError, SettingsError
from contracts.manifest import Manifest, hash_files, sign_manifest, verify_signed, write_manifest
from contracts.settings import Learner, Settings
from contracts.signing import (
    Signature,
    check_signature,
    key_id,
    make_signing_key,
    sign,
    signing_key,
    trusted_keys,
)
from tests.signing_keys import new_key

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return new_key(tmp_path / "state")


@pytest.fixture
def version(tmp_path: Path, settings: Settings) -> tuple[Path, str]:
    directory = tmp_path / "version"
    directory.mkdir()
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    manifest = Manifest(
        policy="assistant",
        sequence=1,
        form="lora",
        base="b",
        parent="base",
        as_of=NOON,
        newest_feedback_time=NOON,
        trained_on=(),
        samples=1,
        config={},
        code="test",
        files=hash_files(directory),
    )
    name = write_manifest(directory, manifest)
    sign_manifest(directory, signing_key(settings))
    return directory, name


def test_a_signed_version_verifies_and_signing_does_not_change_its_id(
    version: tuple[Path, str], settings: Settings
) -> None:
    directory, name = version
    assert verify_signed(directory, name, trusted_keys(settings)).sequence == 1
    before = (directory / "manifest.sig").read_bytes()
    sign_manifest(directory, signing_key(settings))
    assert (directory / "manifest.sig").read_bytes() == before


def no_signature(directory: Path) -> None:
    (directory / "manifest.sig").unlink()


def a_directory(directory: Path) -> None:
    no_signature(directory)
    (directory / "manifest.sig").mkdir()


def nonsense(directory: Path) -> None:
    (directory / "manifest.sig").write_bytes(b"\xff\xfe")


def not_base64(directory: Path) -> None:
    found = msgspec.json.decode((directory / "manifest.sig").read_bytes(), type=Signature)
    wrong = msgspec.json.encode(replace(found, signature="%%%"))
    (directory / "manifest.sig").write_bytes(wrong)


def too_long(directory: Path) -> None:
    (directory / "manifest.sig").write_bytes(
        (directory / "manifest.sig").read_bytes() + b" " * 2000
    )


def other_weights(directory: Path) -> None:
    (directory / "adapter_model.safetensors").write_bytes(b"weighty")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_signature, "unsigned"),
        (a_directory, "unsigned"),
        (nonsense, "is no signature"),
        (not_base64, "is no signature"),
        (too_long, "changed"),
        (other_weights, "differ from the manifest"),
    ],
)
def test_a_spoiled_version_is_refused(
    version: tuple[Path, str], settings: Settings, spoil: Callable[[Path], None], said: str
) -> None:
    directory, name = version
    spoil(directory)
    with pytest.raises(ManifestError, match=said):
        verify_signed(directory, name, trusted_keys(settings))


def test_a_key_that_is_not_trusted_signs_nothing(
    version: tuple[Path, str], settings: Settings, tmp_path: Path
) -> None:
    directory, name = version
    stranger = trusted_keys(new_key(tmp_path / "stranger"))
    with pytest.raises(ManifestError, match="not trusted"):
        verify_signed(directory, name, stranger)
    with pytest.raises(ManifestError, match="trusted: none"):
        verify_signed(directory, name, trusted_keys(Settings(state_dir=tmp_path / "nothing")))
    both = {**stranger, **trusted_keys(settings)}
    assert verify_signed(directory, name, both).samples == 1


@given(st.binary(min_size=1, max_size=200), st.integers(0, 10_000))
def test_one_changed_bit_of_the_manifest_breaks_the_signature(raw: bytes, place: int) -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    trusted = {key_id(key.public_key()): key.public_key()}
    signed = sign(raw, key)
    assert check_signature(raw, signed, trusted) in trusted
    changed = bytearray(raw)
    changed[place // 8 % len(raw)] ^= 1 << place % 8
    with pytest.raises(ManifestError, match="is wrong"):
        check_signature(bytes(changed), signed, trusted)


def test_a_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    private = tmp_path / "secrets" / "key.pem"
    make_signing_key(private, tmp_path / "keys" / "key.pub")
    assert private.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in private.parent.iterdir()] == ["key.pem"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_keys_made_by_openssl_are_taken(tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "keys" / "mine.pub"
    public.parent.mkdir()
    for arguments in (
        ["genpkey", "-algorithm", "ed25519", "-out", str(private)],
        ["pkey", "-in", str(private), "-pubout", "-out", str(public)],
    ):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    settings = Settings(state_dir=tmp_path, learner=Learner(signing_key_file=str(private)))
    key = signing_key(settings)
    assert list(trusted_keys(settings)) == [key_id(key.public_key())]


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), (b"no key", "no unencrypted private key")]
)
def test_a_learner_without_a_key_is_told_what_to_do(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        signing_key(Settings(learner=Learner(signing_key_file=str(path))))
    with pytest.raises(SettingsError, match="openssl genpkey"):
        signing_key(Settings())


def test_a_trusted_key_that_is_none_stops_every_load(settings: Settings) -> None:
    (settings.state_dir / "keys" / "other.pub").write_text("no key")
    with pytest.raises(ManifestError, match=r"other\.pub cannot be read"):
        trusted_keys(settings)
