"""Keeps those adapters in the engine that the rollout state needs, verified before every load.

An engine forgets its adapters when it restarts, and has room for only so many. It knows nothing of
arms or verdicts: which versions are needed is the caller's word.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from contracts.clock import Clock
from contracts.errors import EngineError, ManifestError, UnavailableError
from contracts.events import BASE_VERSION, Candidate, Sampling
from contracts.manifest import verify_signed
from contracts.settings import Settings, policies_of
from contracts.signing import trusted_keys
from contracts.tracing import current_trace_headers
from serving.engine import Engine, EngineRequest
from serving.full_weights import FullWeights
from serving.served_base import ServedBase

WARM_UP_TOKENS = 4
LATE_SECONDS = 10.0
"""A gateway that learns of a verdict later than this asks for an adapter that may be gone."""
ANSWERING = 409
"""What the engine's door answers while an adapter has answers under way."""

_VERSION = re.compile(r"^[0-9a-f]{64}$")
_Result = TypeVar("_Result")


class BrokenVersionError(ManifestError):
    """A version that was served cannot be loaded again; its files are not what they were."""

    def __init__(self, version: str, reason: str) -> None:
        super().__init__(f"version {version[:12]} cannot be loaded again: {reason}")
        self.version = version


class Adapters:
    """The adapters in one engine, behind calls that block; ``stopping`` ends a call early."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        clock: Clock,
        stopping: Event,
    ) -> None:
        self._engine = engine
        self._all = settings
        self._settings = settings.engine
        self._policy = settings.policy.name
        self._versions = settings.state_dir / "versions"
        self._clock = clock
        self._stopping = stopping
        self._full = FullWeights(engine, settings.policy.model)
        self._base = ServedBase(settings.policy.model, stopping)
        self._runner = asyncio.Runner()
        self._idle_since: dict[str, float] = {}
        self.meanwhile: Callable[[], None] = lambda: None
        """Called again and again while the engine is waited for; what it raises ends the wait."""

    @property
    def swapping(self) -> bool:
        """Whether full weights are being replaced; to end that call early gains no time."""
        return self._full.swapping

    def ensure(self, needed: tuple[Candidate, ...]) -> list[str]:
        """Load what is needed and missing; return the versions that were loaded.

        Raises BrokenVersionError, or EngineError when the engine is away or refuses.
        """
        full = next((candidate for candidate in needed if candidate.form == "full"), None)
        if full is not None:
            return [full.version] if self._serve_full(full) else []
        self._call(self._full.serve(None))
        loaded = self._call(self._engine.models())
        self._watch(loaded, needed)
        missing = [c for c in needed if c.version not in loaded and c.version != BASE_VERSION]
        for candidate in missing:
            self._check_again(candidate)
            self._load(candidate)
        return [candidate.version for candidate in missing]

    def _serve_full(self, candidate: Candidate) -> bool:
        if self._call(self._engine.weights()) == candidate.version:
            return False
        self._check_again(candidate)
        return self._call(self._full.serve(candidate, self._directory(candidate)))

    def _check_again(self, candidate: Candidate) -> None:
        try:
            self._check(candidate)
        except ManifestError as error:
            raise BrokenVersionError(candidate.version, str(error)) from error

    def admit(self, candidate: Candidate, needed: tuple[Candidate, ...]) -> None:
        """Verify, load and warm up a new version beside those that are needed.

        One with full weights takes their place, and one without takes that of full weights.

        Raises ManifestError, EngineError, or UnavailableError while there is no room because a
        version that left service may still be answering.
        """
        self._check(candidate)
        if candidate.form == "full":
            self._call(self._full.serve(candidate, self._directory(candidate)))
            return
        self._call(self._full.serve(None))
        loaded = self._call(self._engine.models())
        self._watch(loaded, (*needed, candidate))
        if candidate.version not in loaded:
            self._make_room(loaded)
            self._load(candidate)
        self._call(self._engine.complete(self._warm_up(candidate.version)))

    def ask(self, question: Callable[[Engine], Coroutine[Any, Any, _Result]]) -> _Result:
        """Ask the engine something of the caller's own, and wait for it; raises what it raises."""
        return self._call(question(self._engine))

    def healthy(self) -> bool:
        """Tell whether the engine answers its health check."""
        return self._call(self._engine.healthy())

    def close(self) -> None:
        """Close the engine's connections and the loop."""
        try:
            self._runner.run(self._engine.close())
        finally:
            self._runner.close()

    def _check(self, candidate: Candidate) -> None:
        directory, keys = self._directory(candidate), trusted_keys(self._all)
        manifest = verify_signed(directory, candidate.version, keys)
        if manifest.policy != self._policy:
            raise ManifestError(
                f"{candidate.version} is a version of policy {manifest.policy!r}; "
                f"this controller serves {self._policy!r}"
            )
        if manifest.form == "full" and len(names := policies_of(self._all)) > 1:
            raise ManifestError(
                f"{candidate.version} has full weights, which take the whole engine, and "
                f"{', '.join(names)} share it; serve it where there is one policy and no segments"
            )
        if manifest.form != candidate.form:
            raise ManifestError(
                f"{candidate.version} has form {manifest.form!r}, its release {candidate.form!r}; "
                "release it as what it is"
            )
        self._call(asyncio.to_thread(self._base.check, manifest))

    def _load(self, candidate: Candidate) -> None:
        directory = self._directory(candidate)
        self._call(self._engine.load_adapter(candidate.version, directory))

    def _directory(self, candidate: Candidate) -> Path:
        """Return where the version really lies; ManifestError unless below our versions.

        Anyone who can write a release could else have the engine read any directory.
        """
        root, location = self._versions.resolve(), candidate.location
        try:
            found = Path(location).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise ManifestError(f"location {location[:300]!r} is no path: {error}") from error
        if root not in found.parents:
            raise ManifestError(
                f"location {location[:300]!r} is not below {root}; "
                "publish versions there, or give all processes the same state_dir"
            )
        return found

    def _watch(self, loaded: dict[str, str], needed: tuple[Candidate, ...]) -> None:
        """Note since when each of our policy's adapters is no longer needed.

        Versions lie below the name of their policy; what others serve is left alone.
        """
        now = self._clock.monotonic()
        names = {candidate.version for candidate in needed}
        ours = [name for name, path in loaded.items() if Path(path).parent.name == self._policy]
        idle = [name for name in ours if _VERSION.match(name) and name not in names]
        self._idle_since = {name: self._idle_since.get(name, now) for name in idle}

    def _make_room(self, loaded: dict[str, str]) -> None:
        """Unload the longest idle adapters until one more fits.

        A gateway may learn of a verdict late, and an answer may run long. An engine with a door
        says which answers are under way; without one, what has been idle for ``timeout_seconds``
        has none. The rest stays ready to go back to.
        """
        surplus = sum(1 for path in loaded.values() if path) + 1 - self._settings.max_adapters
        if surplus <= 0:
            return
        idle = sorted(self._idle_since, key=self._idle_since.__getitem__)
        if surplus > len(idle):
            raise UnavailableError(
                f"the engine has no room: {self._settings.max_adapters} adapters allowed "
                f"(engine.max_adapters), {len(loaded)} models loaded, of which only {len(idle)} "
                "are ours to unload; unload the others or allow more"
            )
        running = self._call(self._engine.running())
        for name in idle[:surplus]:
            self._retire(name, running)

    def _retire(self, name: str, running: dict[str, int] | None) -> None:
        """Unload an idle adapter; UnavailableError while it may still be answering."""
        drain = self._settings.timeout_seconds
        if running is not None:
            drain = min(drain, LATE_SECONDS)
        wait = drain - (self._clock.monotonic() - self._idle_since[name])
        if wait > 0:
            raise UnavailableError(
                f"the engine is full: waiting {wait:.0f} s until {name[:12]} has drained"
            )
        try:
            self._call(self._engine.unload_adapter(name))
        except EngineError as error:
            if error.status != ANSWERING:
                raise
            raise UnavailableError(f"the engine is full: {error}") from error
        del self._idle_since[name]

    def _warm_up(self, version: str) -> EngineRequest:
        return EngineRequest(
            model=version,
            messages=[{"role": "user", "content": "Hello"}],
            tools=[],
            sampling=Sampling(max_tokens=WARM_UP_TOKENS),
            trace=current_trace_headers(),
        )

    def _call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return self._runner.run(self._watched(work))

    async def _watched(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                if self._stopping.is_set():
                    raise EngineError("stopped while waiting for the engine")
                self.meanwhile()
                await asyncio.wait({task}, timeout=0.05)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
