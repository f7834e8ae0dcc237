"""What a base model is: a name that learner and serving both find from its files alone."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from contracts.codec import to_json
from contracts.manifest import file_sha256

BY_CONTENT = "sha256:"
"""Begins the identity of a base that lies in a directory; others are called name@commit."""
_KINDS = ("*.safetensors", "*.json", "*.jinja")
_WORDS = ("merges.txt", "vocab.txt", "*.model", "*.tiktoken")
"""What a tokenizer is made of where there is no tokenizer.json; with it they are not read."""


def base_files(directory: Path) -> list[Path]:
    """Return the files of a directory that decide what the base in it is, sorted."""
    worded = (directory / "tokenizer.json").is_file()
    kinds = _KINDS if worded else _KINDS + _WORDS
    return sorted(path for kind in kinds for path in directory.glob(kind))


def identity_of(directory: Path, before_each: Callable[[], None] = lambda: None) -> str:
    """Return what the base in a directory is, the same on every machine: a hash of its files.

    It reads all of the weights, a second or so for each gigabyte; what ``before_each`` file raises
    ends that. Raises OSError.
    """
    listing = {}
    for path in base_files(directory):
        before_each()
        listing[path.name] = file_sha256(path)
    return f"{BY_CONTENT}{sha256(to_json(listing)).hexdigest()}"
