"""vLLM's worker on a CPU, with one fault of it mended.

Where a prompt takes more than one step, each step but the last draws a token that is thrown away.
vLLM 0.32 then sets the request's own random generator back by its offset, which a generator on a
CPU does not have: the engine dies of any request with a seed (``RuntimeError: CPU Generator does
not use offset``). Here the generator gets back the state it had, so that a seed draws the same
tokens however the prompt was cut. Given to vLLM as ``--worker-cls engine_worker.EngineWorker``.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class EngineWorker(CPUWorker):  # type: ignore[misc] # vLLM is not installed where types are checked
    """The worker of a CPU engine; its runner keeps the generators of unfinished prompts."""

    def init_device(self) -> None:
        """Set the device up as vLLM does, and mend its runner."""
        super().init_device()
        runner = self.model_runner
        if hasattr(runner, "_bookkeeping_sync"):
            keep_generators(runner)


def keep_generators(runner: Any) -> None:
    """Have a runner draw for unfinished prompts without moving their generators on."""
    sample, bookkeeping = runner._sample, runner._bookkeeping_sync

    def unfinished() -> dict[int, Any]:
        discarded = runner.discard_request_mask.np[: runner.input_batch.num_reqs]
        return {i: g for i, g in runner.input_batch.generators.items() if discarded[i]}

    def sampled(*given: Any, **named: Any) -> Any:
        before = [(generator, generator.get_state()) for generator in unfinished().values()]
        found = sample(*given, **named)
        for generator, state in before:
            generator.set_state(state)
        return found

    def kept(*given: Any, **named: Any) -> Any:
        generators = runner.input_batch.generators
        gone = unfinished()
        runner.input_batch.generators = {i: g for i, g in generators.items() if i not in gone}
        try:
            return bookkeeping(*given, **named)
        finally:
            runner.input_batch.generators = generators

    runner._sample, runner._bookkeeping_sync = sampled, kept
