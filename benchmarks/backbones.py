"""Which families serve on vLLM what they learned? ``python -m benchmarks.backbones [FAMILY ...]``.

Of each family a tiny random model is made, learns two updates, and its adapter is loaded by the
local stack's vLLM (in ``.venv-vllm``, or ``--vllm PYTHON``), as it is started in production. The
log-probabilities that vLLM gives with its answers, of the adapter and of the base, are compared
with the learner's own. Prints a Markdown row per family.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.loop import ROOT
from benchmarks.server_process import Command, server_process
from console.local_broker import free_port
from console.system_libraries import loader_environment
from contracts import settings as s
from contracts.errors import EngineError
from contracts.events import BASE_VERSION, Sampling
from learner.adapters import load_policy, save_adapter
from learner.buckets import TokenSequence
from learner.policy import Policy
from serving.engine import EngineRequest
from serving.http_engine import HttpEngine
from serving.vllm_command import vllm_command
from tests.learner.families import FAMILIES, OTHERS, make_family, teach

ADMIN_KEY = "the-admin-key-of-the-benchmark"
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "num_attention_heads": 2}
"""vLLM on a CPU serves heads of 32 dimensions and more."""

UNWINDOWED: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": False, "layer_types": ["full_attention"] * 3}
}
"""vLLM refuses a Qwen2 with windows in some of its layers; published ones have none."""

ASKED = ("w3 w9 w20", "w1", "w30 w31 w32 w33 w34 w35 w36 w37 w38 w39")
ANSWERS, TEMPERATURE, MAX_TOKENS = 4, 1.3, 24


def main() -> int:
    """Print the table."""
    options = _options()
    print("| family | adapter in vLLM | largest difference, adapter | base |\n|---|---|---|---|")
    for kind in options.families:
        with TemporaryDirectory() as folder:
            print(f"| {kind} | {_row(kind, Path(folder), options)} |", flush=True)
    return 0


def _row(kind: str, folder: Path, options: argparse.Namespace) -> str:
    base, adapter = folder / "base", folder / "adapter"
    changes = {**WIDE, **UNWINDOWED.get(kind, {})}
    make_family(kind, base, num_key_value_heads=options.key_heads, **changes)
    settings = s.Settings(
        policy=s.Policy(model=str(base)),
        engine=s.Engine(dtype="float32", max_lora_rank=8, max_model_len=128, admin_key=ADMIN_KEY),
        learner=s.Learner(lora_rank=8, lora_alpha=16.0, learning_rate=2e-2),
    )
    policy = load_policy(settings)
    teach(policy)
    adapter.mkdir()
    save_adapter(policy, adapter)
    port = free_port()
    argv, environment = vllm_command(settings, port, options.vllm)
    environment |= loader_environment(options.vllm.parent.parent)
    log = options.logs / f"{kind}.log"
    try:
        with server_process(Command(argv, environment, log), f"http://127.0.0.1:{port}/health"):
            return asyncio.run(_compared(policy, port, adapter))
    except (RuntimeError, TimeoutError) as error:
        return f"not served: {str(error).splitlines()[-1][:200]} | - | -"


async def _compared(policy: Policy, port: int, adapter: Path) -> str:
    engine = HttpEngine(f"http://127.0.0.1:{port}", 120.0, admin_key=ADMIN_KEY)
    try:
        await engine.load_adapter("learned", adapter)
        found = [await _apart(policy, engine, model) for model in ("learned", BASE_VERSION)]
    except EngineError as error:
        return f"refused: {str(error)[:200]} | - | -"
    finally:
        await engine.close()
    return f"yes | {found[0]:.1e} | {found[1]:.1e}"


async def _apart(policy: Policy, engine: HttpEngine, model: str) -> float:
    """Return the largest difference between the engine's log-probabilities and the learner's."""
    worst = 0.0
    for number in range(ANSWERS):
        for text in ASKED:
            sampling = Sampling(temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=number)
            asked = EngineRequest(model, [{"role": "user", "content": text}], [], sampling)
            answer = await engine.complete(asked)
            sequence = TokenSequence(answer.prompt_token_ids, answer.token_ids, TEMPERATURE)
            [row] = policy.logprobs([sequence], 128, adapted=model != BASE_VERSION)
            pairs = zip(row, answer.logprobs, strict=True)
            worst = max(worst, *(abs(ours - theirs) for ours, theirs in pairs))
    return worst


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("families", nargs="*", default=[*FAMILIES, *OTHERS], metavar="FAMILY")
    parser.add_argument("--key-heads", type=int, default=1)
    parser.add_argument("--logs", type=Path, default=Path(), metavar="DIR", help="for vLLM's logs")
    parser.add_argument(
        "--vllm", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python", metavar="PYTHON"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
