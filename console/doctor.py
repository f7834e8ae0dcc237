"""What this machine and these settings have and lack, and the cure for each missing thing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
from msgspec import Struct

from console import programs
from console.environments import vllm_missing
from console.local_broker import broker_command
from console.stack import port_is_taken
from console.status import running_stack
from console.store_servers import INSTALL, missing_servers
from console.system_libraries import loader_environment
from console.table import table
from contracts.errors import HeadraceError
from contracts.settings import Settings, redis_servers

GIB = 1 << 30
NEEDED_DISK_GIB = 2.0
NEEDED_MEMORY_GIB = 4.0
IMPORT_SECONDS = 120.0


class Check(Struct, frozen=True, kw_only=True):
    """One thing looked at; ``needed`` tells whether the stack can do without it."""

    name: str
    ok: bool
    found: str
    needed: bool = True
    cure: str = ""


def examine(settings: Settings) -> list[Check]:
    """Look at everything the stack needs; nothing is changed and nothing is started."""
    checks: list[Callable[[Settings], Check]] = [
        _python,
        _platform_environment,
        _vllm_environment,
        _model,
        _broker,
        _engine,
        _gateway_port,
        _feature_store,
        _store_servers,
        _disk,
        _memory,
    ]
    return [check(settings) for check in checks]


def is_healthy(checks: list[Check]) -> bool:
    """Return whether nothing that is needed is missing."""
    return all(check.ok or not check.needed for check in checks)


def doctor_text(checks: list[Check]) -> str:
    """Return the table for people, with the cures below."""
    rows = [
        ("ok" if check.ok else "MISSING" if check.needed else "absent", check.name, check.found)
        for check in checks
    ]
    cures = [f"  {check.name}: {check.cure}" for check in checks if not check.ok and check.cure]
    lines = [table(("", "what", "found"), rows)]
    return "\n".join([*lines, *(["", "cures:", *cures] if cures else [])])


def _python(_settings: Settings) -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check(
        name="python",
        ok=sys.version_info[:2] == (3, 11),
        found=version,
        cure="install Python 3.11 and run 'make setup'",
    )


def _platform_environment(_settings: Settings) -> Check:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = [f"{name} {version(name)}" for name in ("torch", "faust-streaming", "feast")]
    except PackageNotFoundError as error:
        return Check(name="platform", ok=False, found=str(error), cure="run 'make setup'")
    return Check(name="platform", ok=True, found=", ".join(found))


def _vllm_environment(settings: Settings) -> Check:
    needed = settings.engine.kind == "vllm" and not settings.engine.url
    cure = "run 'make setup', or set engine.kind to transformers"
    if why := vllm_missing():
        instead = "the transformers engine serves instead, or a vLLM of yours with --engine URL"
        return Check(name="vllm", ok=False, needed=False, found=why, cure=instead)
    if not needed:
        return Check(name="vllm", ok=True, needed=False, found="there, but not used")
    try:
        asked = subprocess.run(
            [str(programs.VLLM_PYTHON), "-c", "import vllm; print(vllm.__version__)"],
            capture_output=True,
            text=True,
            timeout=IMPORT_SECONDS,
            env=os.environ | loader_environment(programs.VLLM_PYTHON.parent.parent),
            check=False,
        )
    except subprocess.TimeoutExpired:
        found = f"import takes longer than {IMPORT_SECONDS:.0f} s"
        return Check(name="vllm", ok=False, needed=needed, found=found, cure=cure)
    lines = (asked.stdout if asked.returncode == 0 else asked.stderr).strip().splitlines()
    found = lines[-1] if lines else f"import ends with code {asked.returncode}"
    return Check(name="vllm", ok=asked.returncode == 0, needed=needed, found=found, cure=cure)


def _model(settings: Settings) -> Check:
    model = settings.policy.model
    if not model:
        return Check(
            name="model",
            ok=False,
            needed=False,
            found="policy.model is empty",
            cure="give --model PATH or policy.model; 'headrace demo' makes its own",
        )
    directory = Path(model)
    if not directory.exists() and "/" in model and not model.startswith((".", "/")):
        return Check(name="model", ok=True, found=f"{model}, fetched by name on first use")
    lacking = [
        name for name in ("config.json", "tokenizer.json") if not (directory / name).exists()
    ]
    return Check(
        name="model",
        ok=not lacking,
        found=f"{model} lacks {' and '.join(lacking)}" if lacking else model,
        cure="name a Hugging Face model directory in policy.model or with --model",
    )


def _broker(settings: Settings) -> Check:
    stack = running_stack(settings.state_dir)
    address = settings.kafka.bootstrap or (stack.kafka if stack else "")
    if address:
        from msgspec.structs import replace

        words = programs.broker_missing(replace(settings.kafka, bootstrap=address))
        return Check(
            name="broker",
            ok=not words,
            found=f"{address} {'does not answer' if words else 'answers'}",
            cure="start your Kafka, or correct kafka.bootstrap; empty means a local broker",
        )
    try:
        broker_command(1, settings.state_dir)
    except HeadraceError as error:
        return Check(name="broker", ok=False, found="no local broker", cure=str(error))
    return Check(name="broker", ok=True, found="local broker, starts with the stack")


def _engine(settings: Settings) -> Check:
    stack = running_stack(settings.state_dir)
    url = settings.engine.url or (stack.engine if stack else "")
    if not url:
        return Check(name="engine", ok=True, found=f"{settings.engine.kind}, starts with the stack")
    words = programs.http_missing(f"{url}/health")
    return Check(
        name="engine",
        ok=not words,
        found=words or f"{url} answers",
        cure="start the engine, or correct engine.url; empty means that the stack starts one",
    )


def _gateway_port(settings: Settings) -> Check:
    host, port = settings.gateway.host, settings.gateway.port
    taken = bool(port) and port_is_taken(host, port)
    own = running_stack(settings.state_dir) is not None
    found = f"{host}:{port or 'any free port'} " + ("in use" if taken else "free")
    return Check(
        name="gateway port",
        ok=own or not taken,
        found=found + (" by the running stack" if taken and own else ""),
        cure="set gateway.port to another port, or to 0 for any free one",
    )


def _feature_store(settings: Settings) -> Check:
    directory = settings.state_dir / "features"
    made = directory.exists() and any(directory.iterdir())
    found = (
        f"{settings.features.online}, {'in ' + str(directory) if made else 'made at first start'}"
    )
    if settings.features.online == "redis":
        server = redis_servers(settings.features)[0]
        host, _, port = server.rpartition(":")
        answers = port_is_taken(host.strip("[]"), int(port))
        return Check(
            name="feature store",
            ok=answers,
            found=f"redis {server} {'answers' if answers else 'does not answer'}",
            cure="start Redis, correct features.redis, or set features.online to sqlite",
        )
    return Check(name="feature store", ok=True, found=found)


def _store_servers(_settings: Settings) -> Check:
    lacking = missing_servers()
    return Check(
        name="servers for tests",
        ok=not lacking,
        needed=False,
        found=f"no {', no '.join(lacking)}" if lacking else "Redis and PostgreSQL",
        cure=f"{INSTALL}; without them the tests of the feature store on Redis and of its "
        "registry in PostgreSQL are skipped",
    )


def _disk(settings: Settings) -> Check:
    place = settings.state_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / GIB
    return Check(
        name="disk",
        ok=free >= NEEDED_DISK_GIB,
        found=f"{free:.1f} GiB free at {place}",
        cure=f"free {NEEDED_DISK_GIB:.0f} GiB, or move state_dir",
    )


def _memory(_settings: Settings) -> Check:
    free = psutil.virtual_memory().available / GIB
    return Check(
        name="memory",
        ok=free >= NEEDED_MEMORY_GIB,
        needed=False,
        found=f"{free:.1f} GiB available",
        cure=f"{NEEDED_MEMORY_GIB:.0f} GiB are enough for a small model with vLLM",
    )
