"""Signatures of manifests: Ed25519 (RFC 8032), the private key with the learner alone.

The signature covers the manifest's bytes, and the manifest holds the hash of every other file.
Keys are PEM files as OpenSSL writes them: ``openssl genpkey -algorithm ed25519 -out key.pem`` and
``openssl pkey -in key.pem -pubout -out key.pub``.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from msgspec import Struct

from contracts.errors import ManifestError, SettingsError
from contracts.settings import Settings

SIGNATURE_NAME = "manifest.sig"
PUBLIC_SUFFIX = ".pub"
MAX_SIGNATURE_BYTES = 1024

TrustedKeys = Mapping[str, Ed25519PublicKey]
"""Key id to public key; versions signed by any of them are loaded."""


class Signature(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of ``manifest.sig``: who signed, and 64 bytes in base64."""

    algorithm: Literal["ed25519"] = "ed25519"
    key: str
    signature: str


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key: 16 hex digits of the sha256 of its 32 bytes."""
    return sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def make_signing_key(private: Path, public: Path) -> None:
    """Make a new pair: the private key for its owner alone, the public one for all.

    The public one is written first: a crash between the two leaves no key that nobody trusts.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public_pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for path in (private, public):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    public.write_bytes(public_pem)
    partial = private.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(private)


def signing_key(settings: Settings) -> Ed25519PrivateKey:
    """Return the learner's private key; SettingsError when there is none or it is no such key."""
    given = settings.learner.signing_key_file
    if not given:
        raise SettingsError(
            "learner.signing_key_file is empty, and versions are signed; make a key with 'openssl "
            "genpkey -algorithm ed25519 -out FILE' and set HEADRACE_LEARNER__SIGNING_KEY_FILE"
        )
    try:
        key = load_pem_private_key(Path(given).read_bytes(), password=None)
    except OSError as error:
        why = error.strerror or error
        raise SettingsError(f"learner.signing_key_file {given}: {why}; give a PEM file") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(
            f"learner.signing_key_file {given} holds no unencrypted private key in PEM: {error}"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"learner.signing_key_file {given}: give an Ed25519 key")
    return key


def trusted_keys(settings: Settings) -> TrustedKeys:
    """Return the keys whose versions are loaded: every ``*.pub`` in ``policy.trusted_keys``.

    Raises ManifestError when one cannot be read. No key at all means that nothing is loaded.
    """
    directory = settings.state_dir / settings.policy.trusted_keys
    found: dict[str, Ed25519PublicKey] = {}
    for path in sorted(directory.glob(f"*{PUBLIC_SUFFIX}")):
        try:
            key = load_pem_public_key(path.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise ManifestError(
                f"trusted key {path} cannot be read: {error}; give an Ed25519 public key in PEM"
            ) from error
        if not isinstance(key, Ed25519PublicKey):
            raise ManifestError(f"trusted key {path} is of another kind; give an Ed25519 key")
        found[key_id(key)] = key
    return found


def sign(raw: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the content of ``manifest.sig``; the same for the same bytes and key."""
    signature = base64.b64encode(key.sign(raw)).decode()
    found = Signature(key=key_id(key.public_key()), signature=signature)
    return msgspec.json.encode(found)


def check_signature(raw: bytes, signed: bytes, trusted: TrustedKeys) -> str:
    """Return the id of the trusted key that signed these bytes; ManifestError if none did."""
    try:
        found = msgspec.json.decode(signed, type=Signature)
        signature = base64.b64decode(found.signature, validate=True)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ManifestError(f"{SIGNATURE_NAME} is no signature: {error}") from error
    key = trusted.get(found.key)
    if key is None:
        known = ", ".join(trusted) or "none"
        raise ManifestError(
            f"signed by key {found.key[:64]!r}, which is not trusted (trusted: {known}); put its "
            f"{PUBLIC_SUFFIX} file into policy.trusted_keys if it is yours"
        )
    try:
        key.verify(signature, raw)
    except InvalidSignature as error:
        raise ManifestError(f"the signature by key {found.key} is wrong") from error
    return found.key
