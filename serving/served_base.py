"""Tells whether a version was learned on the base that the engine serves.

An adapter is a difference from one base. On another of the same shape it loads without a word, and
what it answers nobody has judged.
"""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Event

from contracts.base_identity import BY_CONTENT, base_files, identity_of
from contracts.errors import EngineError, ManifestError
from contracts.manifest import Manifest

_logger = logging.getLogger("serving")
_Stamp = tuple[tuple[str, int, int], ...]


class ServedBase:
    """The base in ``policy.model``; its weights are read again only where files have changed.

    Where an engine that we did not start serves another base than that, nothing here can see it.
    """

    def __init__(self, model: str, stopping: Event) -> None:
        self._model = model
        self._stopping = stopping
        self._known: tuple[_Stamp, str] | None = None
        if Path(model).is_absolute() and not Path(model).is_dir():
            _logger.warning(
                "policy.model %s is no directory here: versions are loaded without a look at the "
                "base that they were learned on; give this process the files, too",
                model,
            )

    def check(self, manifest: Manifest) -> None:
        """Raise ManifestError for an adapter that was learned on another base.

        EngineError where ours cannot be read, or a stop ends the reading: neither says anything
        against a version. What cannot be told passes: without ``policy.model``, or where one base
        is known by its files and the other by its name. Of names the commits are not compared.
        """
        if not self._model or manifest.form != "lora":
            return
        learned_on, here = manifest.base, Path(self._model).is_dir()
        if here != learned_on.startswith(BY_CONTENT):
            return
        ours = self._identity() if here else self._model
        if (learned_on if here else learned_on.rpartition("@")[0]) != ours:
            raise ManifestError(
                f"it was learned on base {learned_on}, and policy.model is "
                f"{f'{ours} ({self._model})' if here else ours}; serve the base that it was "
                "learned on, or learn anew on this one under another policy.name"
            )

    def _identity(self) -> str:
        directory = Path(self._model)
        try:
            states = [(path.name, path.stat()) for path in base_files(directory)]
            stamp = tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)
            if self._known is None or self._known[0] != stamp:
                self._known = stamp, identity_of(directory, self._go_on)
        except OSError as error:
            raise EngineError(f"policy.model {self._model} cannot be read: {error}") from error
        return self._known[1]

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise EngineError(f"stopped while reading policy.model {self._model}")
