"""Finds the model's directory; a name on the Hugging Face hub is fetched into the local cache."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from console.waiting import Shown
from contracts.errors import UnavailableError

FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""Weights, configuration, chat template and tokenizer; nothing that runs code when it is read."""


def local_model(model: str, shown: Shown) -> str:
    """Return the absolute directory of a model given as a directory or by its name on the hub.

    UnavailableError when there is no such directory, or the name cannot be had.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        return str(directory.absolute())
    if model.startswith((".", "/", "~")):
        raise UnavailableError(
            f"model {model!r} is no directory; give a Hugging Face model directory, or the name of "
            "a model on the hub such as organisation/name"
        )
    return _fetched(model, shown)


def _fetched(name: str, shown: Shown) -> str:
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    shown.say(f"model: {name} from the Hugging Face hub, unless it was fetched before")
    try:
        with _interrupt_ends_at_once():
            return snapshot_download(name, allow_patterns=list(FILES))
    except (OSError, ValueError, HTTPError, HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UnavailableError(
            f"model {name!r} cannot be fetched from the Hugging Face hub ({reason}); check its "
            "name and the network, log in with 'hf auth login' where it is gated, or fetch it "
            "elsewhere and give its directory"
        ) from error


@contextmanager
def _interrupt_ends_at_once() -> Iterator[None]:
    """Let SIGINT end the process as SIGTERM does: a KeyboardInterrupt would wait for the threads
    that download. What they have stays in the cache, and the next download goes on from there."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
