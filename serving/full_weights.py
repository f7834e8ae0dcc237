"""Serves versions that are whole models: one at a time, instead of the base and its adapters."""

from __future__ import annotations

from pathlib import Path

from contracts.errors import EngineError
from contracts.events import Candidate
from serving.engine import Engine
from serving.weight_swap import Weights


class FullWeights:
    """What the base model of one engine is made of; ``base`` is where its own weights lie."""

    def __init__(self, engine: Engine, base: str) -> None:
        self._engine = engine
        self._base = Weights("", Path(base or "/nowhere"))
        self._present = self._base
        self.swapping = False
        """Whether weights are being replaced, which goes on to its end once begun."""

    async def serve(self, candidate: Candidate | None, directory: Path | None = None) -> bool:
        """Have the engine serve a version's weights, None for the base's own; True if changed.

        Raises EngineError, which says what is served instead. An engine that restarted has its
        base's weights again. A version that somebody else put there, and weights that nobody knows
        after a swap that was cut short, have no way back but the base.
        """
        now = await self._engine.weights()
        to = Weights(candidate.version, directory) if candidate and directory else self._base
        if now == to.version:
            return False
        if not self._base.path.is_dir():
            raise EngineError(
                f"{self._base.path} is no directory, so there would be no way back; give "
                "policy.model as a directory that controller and engine both see"
            )
        back = self._present if self._present.version == now else self._base
        self.swapping = True
        try:
            await self._engine.swap_weights(to, back)
        finally:
            self.swapping = False
        self._present = to
        return True
