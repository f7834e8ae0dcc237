"""The command line and environment of the vLLM server; whoever starts it is not its business."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from contracts.events import BASE_VERSION
from contracts.processor import engine_dtype, processor_flags
from contracts.settings import Settings
from serving.door.engine_door import ADMIN_KEY, FAULTS, KEY

MAX_SEQUENCES = 16
STEP_TOKENS = 128
"""Tokens of prompts and answers in one step: an adapter is loaded between two of them."""
DOOR = Path(__file__).parent / "door"
"""The one folder of ours on vLLM's import path: it holds the door and a worker."""


def vllm_command(
    settings: Settings, port: int, python: Path, flags: Collection[str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return (argv, additions to the environment) of a vLLM 0.32 server for CPU on loopback.

    The environment holds the keys of the engine's door, which stands in front of every path.

    ``python`` is the interpreter of the environment that has vLLM. The development endpoints, which
    run arbitrary code, are off unless ``engine.full_weights`` needs them. ``flags`` are those of
    the processor that will serve, by default this machine's.

    ``processed_logprobs`` reports each drawn token under the distribution it was drawn from
    (after temperature, top_k, top_p), which is what an importance weight divides by; vLLM's own
    default is the raw model's. ``--generation-config vllm`` keeps the model's recommended sampling
    values (a repetition penalty, say) out of requests. With ``--enforce-eager`` torch.compile is
    left with a function of the sampler alone, and would want a C++ compiler for it.

    Without ``VLLM_ENABLE_V1_MULTIPROCESSING`` the engine core runs the model itself. Else a worker
    process does, and the core spins on a core of its own while it waits.
    """
    engine = settings.engine
    dtype = engine_dtype(engine.dtype, processor_flags() if flags is None else flags)
    argv = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", settings.policy.model),
        *("--served-model-name", BASE_VERSION),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", dtype),
        *("--max-model-len", str(engine.max_model_len)),
        *("--max-num-seqs", str(MAX_SEQUENCES)),
        *("--max-num-batched-tokens", str(STEP_TOKENS)),
        "--enforce-eager",
        "--enable-lora",
        *("--max-loras", str(engine.max_adapters)),
        *("--max-cpu-loras", str(2 * engine.max_adapters)),
        *("--max-lora-rank", str(engine.max_lora_rank)),
        *("--logprobs-mode", "processed_logprobs"),
        *("--generation-config", "vllm"),
        *("--middleware", "engine_door.EngineDoor"),
        *("--worker-cls", "engine_worker.EngineWorker"),
        "--disable-uvicorn-access-log",
    ]
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1" if engine.full_weights else "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "PYTHONPATH": str(DOOR),
        FAULTS: "true" if engine.faults else "false",
    }
    keys = {KEY: engine.key, ADMIN_KEY: engine.admin_key}
    environment |= {name: key for name, key in keys.items() if key}
    return argv, environment
