"""The local stack: from settings to a supervised set of programs with free ports and a secret."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

from msgspec.structs import replace

from console import programs
from console.child import Program
from console.child_environment import (
    ENGINE_ADMIN_KEY,
    ENGINE_KEY,
    FEEDBACK_SECRET,
    SIGNING_KEY_FILE,
    with_secrets,
)
from console.environments import THIS_MACHINE, Machine, vllm_missing
from console.local_broker import free_port
from console.model import local_model
from console.probe import Server, broker_server, engine_server
from console.supervisor import Addresses, Supervisor
from console.waiting import Shown
from contracts.errors import UnavailableError
from contracts.settings import Engine, Settings, policies_of, process_for
from contracts.signing import make_signing_key

FEEDBACK_SECRET_FILE = "feedback_secret"  # noqa: S105 - the name of a file
ADMIN_KEY_FILE = "engine_admin_key"


def resolve(settings: Settings, shown: Shown, machine: Machine = THIS_MACHINE) -> Settings:
    """Fill in what the stack decides: absolute paths, free ports, addresses, secrets, and the
    transformers engine where vLLM is not installed. Children get the result by environment, each
    secret only those that need it."""
    state_dir = settings.state_dir.absolute()
    kafka, engine, gateway = settings.kafka, settings.engine, settings.gateway
    if not kafka.bootstrap:
        kafka = replace(kafka, bootstrap=f"127.0.0.1:{free_port()}")
    if not engine.url:
        engine = engine_to_start(engine, shown, machine)
        port = engine.port or free_port()
        engine = replace(
            engine,
            port=port,
            url=f"http://127.0.0.1:{port}",
            admin_key=engine.admin_key or kept_secret(state_dir, ADMIN_KEY_FILE),
        )
    gateway = replace(
        gateway,
        port=gateway.port or free_port(),
        feedback_secret=gateway.feedback_secret or kept_secret(state_dir, FEEDBACK_SECRET_FILE),
    )
    given_key = settings.learner.signing_key_file
    learner = replace(
        settings.learner, signing_key_file=given_key or str(kept_signing_key(state_dir))
    )
    return replace(
        settings,
        state_dir=state_dir,
        data_dir=settings.data_dir.absolute(),
        kafka=kafka,
        engine=engine,
        gateway=gateway,
        learner=learner,
    )


def engine_to_start(engine: Engine, shown: Shown, machine: Machine = THIS_MACHINE) -> Engine:
    """Return the engine that can be started here, and say so when it is not the one given."""
    if engine.kind != "vllm" or engine.url or not (why := vllm_missing(machine)):
        return engine
    shown.say(f"{why}: the slower transformers engine serves instead")
    return replace(engine, kind="transformers")


def kept_secret(state_dir: Path, name: str) -> str:
    """Return a secret kept below the state directory, made on first use, for its owner alone."""
    path = state_dir / "secrets" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
    return path.read_text().strip()


def kept_signing_key(state_dir: Path) -> Path:
    """Return the learner's key below the state directory, made and trusted on first use."""
    path = state_dir / "secrets" / "signing_key.pem"
    if not path.exists():
        make_signing_key(path, state_dir / "keys" / "learner.pub")
    return path


def open_stack(given: Settings, workers: int, shown: Shown) -> tuple[Settings, Supervisor]:
    """Return the resolved settings and a supervisor that is not started yet.

    A model given by its name on the Hugging Face hub is fetched here, since engines run offline.
    UnavailableError says what is missing: a model, a port, a broker.
    """
    settings = resolve(given, shown)
    if not settings.policy.model:
        raise UnavailableError(
            "no model to serve: give --model PATH (a Hugging Face directory) or policy.model in "
            "headrace.yaml, or run 'headrace demo', which makes one"
        )
    host, port = settings.gateway.host, settings.gateway.port
    if port_is_taken(host, port):
        raise UnavailableError(
            f"port {port} of {host} is taken; set gateway.port to another one, or to 0 for any"
        )
    policy = replace(settings.policy, model=local_model(settings.policy.model, shown))
    settings = replace(settings, policy=policy)
    addresses = Addresses(
        kafka=settings.kafka.bootstrap,
        engine=settings.engine.url,
        engine_kind=settings.engine.kind,
        gateway=f"http://{host}:{port}",
        model=settings.policy.model,
    )
    stack = stack_programs(given, settings, workers)
    outside = outside_servers(given)
    return settings, Supervisor(settings.state_dir, stack, addresses, shown, outside)


def outside_servers(given: Settings) -> list[Server]:
    """Return the servers that ``given`` names and others run."""
    broker = [broker_server(given.kafka)] if given.kafka.bootstrap else []
    engine = [engine_server(given.engine.url, given.engine.key)] if given.engine.url else []
    return [*broker, *engine]


def stack_programs(given: Settings, settings: Settings, workers: int) -> list[Program]:
    """Return the programs; broker and engine only where ``given`` names no existing ones."""
    found: list[Program] = []
    broker: tuple[str, ...] = ()
    if given.kafka.bootstrap:
        use_existing_broker(settings)
    else:
        found.append(programs.broker_program(settings))
        broker = ("broker",)
    front = broker
    if given.engine.url:
        if words := programs.http_missing(f"{settings.engine.url}/health"):
            raise UnavailableError(f"engine {settings.engine.url} does not answer: {words}")
    else:
        keys = with_secrets(settings, ENGINE_KEY, ENGINE_ADMIN_KEY)
        found.append(programs.engine_program(settings, keys))
        front = (*broker, "engine")
    numbers = range(1, workers + 1)
    with_secret = with_secrets(settings, FEEDBACK_SECRET)
    found += [programs.streams_program(settings, with_secret, n, broker) for n in numbers]
    own = programs.own_program
    with_key = with_secrets(settings, SIGNING_KEY_FILE)
    for name, arguments in policy_processes(settings, "learner", "learner"):
        found.append(own(settings, with_key, name, arguments, broker))
    front = (*front, "streams-1")  # it makes the feature store that the gateway reads
    keys = with_secrets(settings, ENGINE_KEY, ENGINE_ADMIN_KEY)
    controllers = policy_processes(settings, "rollout", "serving", "rollout")
    found += [own(settings, keys, name, arguments, front) for name, arguments in controllers]
    arguments, port = ("serving", "gateway"), settings.gateway.port
    keys = with_secrets(settings, ENGINE_KEY, FEEDBACK_SECRET)
    found.append(own(settings, keys, "gateway", arguments, (*front, "rollout"), port))
    return found


def policy_processes(
    settings: Settings, process: str, *command: str
) -> list[tuple[str, tuple[str, ...]]]:
    """Return (name, arguments) of one process per policy."""
    names = [process_for(settings, process, policy) for policy in policies_of(settings)]
    others = [(*command, "--policy", policy) for policy in policies_of(settings)[1:]]
    return list(zip(names, [command, *others], strict=True))


def use_existing_broker(settings: Settings) -> None:
    """Check that the given broker answers and has the topics; UnavailableError when it is away."""
    if words := programs.broker_missing(settings.kafka):
        raise UnavailableError(f"broker {settings.kafka.bootstrap} does not answer ({words})")
    programs.make_topics(settings.kafka)


def port_is_taken(host: str, port: int) -> bool:
    """Return whether something listens there already; nothing does at a name nobody knows."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
