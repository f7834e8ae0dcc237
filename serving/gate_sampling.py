"""Direct sampling: versions answer the gate's prompts themselves, through the engine.

No importance weight protects what the log never showed; asking does. Sampling is that of users,
with a seed per prompt, so that two versions draw with the same chance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from contracts.errors import EngineError
from contracts.events import Message, Sampling
from contracts.tracing import current_trace_headers
from guard.prompts import PromptCase, meets, parsed
from serving.engine import Engine, EngineRequest

Violates = Callable[[PromptCase, Message], bool]
"""Tell whether an answer breaks the safety rules that every answer is held to."""


async def ask_all(
    engine: Engine,
    version: str,
    prompts: Sequence[PromptCase],
    sampling: Sampling,
    violates: Violates,
    *,
    concurrency: int,
    seconds: float,
) -> tuple[bool | None, ...]:
    """Return per prompt whether the version's answer was as expected, None when none came.

    An answer that breaks the safety rules is never as expected. A prompt that the engine refuses,
    or answers too late, gets none. Raises EngineError when the engine is away or no longer has the
    version.
    """
    outcomes: list[bool | None] = [None] * len(prompts)
    places = asyncio.Semaphore(concurrency)

    async def ask(place: int) -> None:
        prompt = prompts[place]
        asked = EngineRequest(
            model=version,
            messages=prompt.messages,
            tools=prompt.tools,
            sampling=replace(sampling, seed=place),
            trace=current_trace_headers(),
        )
        async with places:
            try:
                found = await engine.complete(asked)
            except EngineError as error:
                if error.status == 0:
                    raise  # nobody there: the same prompts are asked again later
                return
        answer = parsed(prompt, found.text)
        outcomes[place] = meets(prompt.expect, answer) and not violates(prompt, answer)

    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for place in range(len(prompts)):
                group.create_task(ask(place))
    except TimeoutError:
        pass  # what did not come is left unanswered
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    if version not in await engine.models():
        raise EngineError(f"the engine lost {version[:12]} while it answered at the gate")
    return tuple(outcomes)
