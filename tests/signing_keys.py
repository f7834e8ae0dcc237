"""Keys that the tests sign versions with."""

from __future__ import annotations

from pathlib import Path

from contracts.settings import Learner, Settings
from contracts.signing import make_signing_key, signing_key


def new_key(folder: Path, name: str = "learner") -> Settings:
    """Make ``secrets/NAME.pem`` and ``keys/NAME.pub``; return settings that sign with the one and
    trust the other."""
    private = folder / "secrets" / f"{name}.pem"
    make_signing_key(private, folder / "keys" / f"{name}.pub")
    settings = Settings(state_dir=folder, learner=Learner(signing_key_file=str(private)))
    assert signing_key(settings)
    return settings
