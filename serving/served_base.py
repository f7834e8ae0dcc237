"""Tells whether a version was learned on the base that the engine serves.

An adapter is a difference from one base. On another of the same shape it loads without a word, and
what it answers nobody has judged.
"""

from __future__ import annotations

from pathlib import Path

from contracts.base_identity import BY_CONTENT, base_files, identity_of
from contracts.errors import EngineError, ManifestError
from contracts.manifest import Manifest

_Stamp = tuple[tuple[str, int, int], ...]


class ServedBase:
    """The base in ``policy.model``; its weights are read again only where files have changed.

    Where an engine that we did not start serves another base than that, nothing here can see it.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._known: tuple[_Stamp, str] | None = None

    def check(self, manifest: Manifest) -> None:
        """Raise ManifestError for a version that was learned on another base.

        EngineError where ours cannot be read, which says nothing against a version. What cannot
        be told passes: without ``policy.model``, or where the version's base has a name with a
        commit and ours is a directory, or the other way round.
        """
        learned_on = manifest.base
        if not self._model:
            return
        if Path(self._model).is_dir():
            ours = self._identity() if learned_on.startswith(BY_CONTENT) else learned_on
        else:
            by_name = not learned_on.startswith(BY_CONTENT)
            learned_on = learned_on.rpartition("@")[0] if by_name else self._model
            ours = self._model
        if learned_on != ours:
            raise ManifestError(
                f"it was learned on base {manifest.base}, and policy.model {self._model} is {ours};"
                " serve the base that it was learned on, or learn anew on this one under another "
                "policy.name"
            )

    def _identity(self) -> str:
        directory = Path(self._model)
        try:
            states = [(path.name, path.stat()) for path in base_files(directory)]
            stamp = tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)
            if self._known is None or self._known[0] != stamp:
                self._known = stamp, identity_of(directory)
        except OSError as error:
            raise EngineError(f"policy.model {self._model} cannot be read: {error}") from error
        return self._known[1]
