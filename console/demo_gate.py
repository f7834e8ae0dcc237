"""The demo's regression prompts: held-out questions of the product, with their right action."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contracts.codec import to_json
from contracts.settings import Settings

if TYPE_CHECKING:
    from simulator.product import Product, Prompt

REGRESSION_NAME = "regression.jsonl"
APART = 7_777
"""Added to the run's seed, so that what the gate asks is not what the report measures by."""


def write_regression_prompts(settings: Settings, product: Product, count: int, seed: int) -> None:
    """Write the file that `console.demo_settings` names, unless another one was given."""
    path = settings.state_dir / REGRESSION_NAME
    if settings.gate.regression_prompts == str(path):
        prompts = product.held_out(seed + APART, count)
        path.write_bytes(b"".join(to_json(_line(product, each)) + b"\n" for each in prompts))


def _line(product: Product, prompt: Prompt) -> dict[str, Any]:
    """Return a prompt in the form of `guard.prompts`."""
    calls = prompt.right.tool_calls
    expect: dict[str, Any] = {"actions": [calls[0].function.name if calls else "answer"]}
    if not calls:
        expect["contains"] = [prompt.right.content]
    return {
        "messages": [{"role": "user", "content": prompt.text}],
        "tools": product.tools,
        "slice": prompt.intent,
        "expect": expect,
    }
