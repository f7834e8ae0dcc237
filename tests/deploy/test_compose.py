"""The Compose file is valid, pinned, on loopback, and starts what the local stack starts."""

from __future__ import annotations

import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from jsonschema import Draft202012Validator

from console.stack import stack_programs
from contracts.settings import (
    Engine,
    Gateway,
    Kafka,
    Policy,
    Settings,
    load_settings,
    to_environment,
)
from serving.vllm_command import vllm_command

DEPLOY = Path(__file__).parents[2] / "deploy"
OURS = ["streams", "learner", "rollout", "gateway"]
GIVEN = {
    "HEADRACE_GATEWAY__FEEDBACK_SECRET": "made-up",
    "HEADRACE_ENGINE__KEY": "made-up-key",
    "HEADRACE_ENGINE__ADMIN_KEY": "made-up-admin-key",
    "SIGNING_KEY_FILE": "/srv/signing.pem",
    "REGRESSION_PROMPTS": "/srv/regression.jsonl",
    "TRUSTED_KEYS_DIR": "/srv/keys",
    "POSTGRES_PASSWORD": "made-up-too",
    "MODEL_DIR": "/srv/model",
}
_REFERENCE = re.compile(r"\$\{(?P<name>\w+)(?::\?(?P<words>[^}]*))?\}")


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def specification() -> Draft202012Validator:
    """The Compose specification's schema, of which check-jsonschema ships a copy."""
    place = "check_jsonschema/builtin_schemas/vendor/compose-spec.json"
    path = Path(str(distribution("check-jsonschema").locate_file(place)))
    return Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))


def filled(text: str) -> str:
    """The text with the variables of the environment put in."""
    return _REFERENCE.sub(lambda match: GIVEN[match["name"]], text)


def settings_of(service: dict[str, Any]) -> Settings:
    environment = {name: filled(str(value)) for name, value in service["environment"].items()}
    return load_settings(environment=environment)


def local_commands() -> dict[str, list[str]]:
    """Program name to the arguments after the interpreter, as ``headrace up`` starts them."""
    given = Settings(policy=Policy(model="/models/base"))
    settings = msgspec.structs.replace(
        given,
        kafka=Kafka(bootstrap="127.0.0.1:9092"),
        engine=Engine(url="http://127.0.0.1:8000", port=8000),
        gateway=Gateway(port=8080, feedback_secret="x"),
    )
    return {
        program.name: list(program.command[1:]) for program in stack_programs(given, settings, 1)
    }


def test_compose_file_satisfies_the_compose_specification(compose: Any) -> None:
    problems = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in specification().iter_errors(compose)
    ]
    assert problems == []


def test_the_specification_does_refuse_a_wrong_file(compose: Any) -> None:
    wrong = compose | {"services": {"kafka": {"imagee": "x"}}}
    assert not specification().is_valid(wrong)


@pytest.mark.parametrize(
    ("service", "program"), [(n, n) for n in OURS[1:]] + [("streams", "streams-1")]
)
def test_container_runs_the_command_of_the_local_stack(
    compose: Any, service: str, program: str
) -> None:
    assert compose["services"][service]["command"] == ["python", *local_commands()[program]]


def test_every_program_of_the_local_stack_has_a_service(compose: Any) -> None:
    services = {"broker": "kafka", "engine": "vllm-cpu", "streams-1": "streams"}
    for program in local_commands():
        assert services.get(program, program) in compose["services"]


@pytest.mark.parametrize("service", ["vllm-cpu", "vllm-gpu"])
def test_engine_runs_the_local_stacks_command_but_for_the_address(
    compose: Any, service: str
) -> None:
    settings = Settings(policy=Policy(model="/models/base"))
    flags = ["avx512_bf16"]  # dtype stays auto: the machine that serves decides
    argv, environment = vllm_command(settings, 8000, Path("python3"), flags)
    described = compose["services"][service]
    started = [*described["entrypoint"], *flattened(described["command"])]
    at = started.index("--otlp-traces-endpoint")
    started[at : at + 2] = []
    assert ["127.0.0.1" if word == "0.0.0.0" else word for word in started] == argv  # noqa: S104 - compared, not bound
    door = described["environment"]["PYTHONPATH"]
    assert f"../serving/door:{door}:ro" in described["volumes"]
    assert (environment | {"PYTHONPATH": door}).items() <= described["environment"].items()


@pytest.mark.parametrize("service", OURS)
def test_health_check_asks_for_the_heartbeat(compose: Any, service: str) -> None:
    process = "streams-1" if service == "streams" else service
    test = compose["services"][service]["healthcheck"]["test"]
    assert test == ["CMD", "headrace", "health", process]


@pytest.mark.parametrize("service", [*OURS, "topics"])
def test_environment_of_each_process_is_valid_settings(compose: Any, service: str) -> None:
    settings = settings_of(compose["services"][service])
    assert settings.kafka.bootstrap == "kafka:9092"
    assert settings.engine.url == "http://vllm:8000"
    assert settings.features.online == "redis"
    assert load_settings(environment=to_environment(settings)) == settings


def test_secrets_come_from_the_environment_and_must_be_given() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    code = re.sub(r"(?m)^\s*#.*$", "", text)
    found = {match["name"]: match["words"] for match in _REFERENCE.finditer(code)}
    assert found.keys() == GIVEN.keys()
    assert all(found.values()), "each missing variable stops compose with a word of advice"
    assert "FEEDBACK_SECRET: ${HEADRACE_GATEWAY__FEEDBACK_SECRET:?" in code


@pytest.mark.parametrize(
    ("secret", "knowing"),
    [
        ("HEADRACE_GATEWAY__FEEDBACK_SECRET", ["streams", "gateway"]),
        ("HEADRACE_ENGINE__KEY", ["vllm-cpu", "vllm-gpu", "rollout", "gateway"]),
        ("HEADRACE_ENGINE__ADMIN_KEY", ["vllm-cpu", "vllm-gpu", "rollout"]),
    ],
)
def test_a_secret_is_known_where_it_is_needed_alone(
    compose: Any, secret: str, knowing: list[str]
) -> None:
    services = compose["services"].items()
    assert [name for name, service in services if secret in json.dumps(service)] == knowing


def test_the_learner_alone_signs_and_the_controller_trusts_keys_it_cannot_write(
    compose: Any,
) -> None:
    services = compose["services"]
    assert [name for name, service in services.items() if "secrets" in service] == ["learner"]
    learner, rollout = settings_of(services["learner"]), settings_of(services["rollout"])
    assert learner.learner.signing_key_file == f"/run/secrets/{services['learner']['secrets'][0]}"
    assert rollout.learner.signing_key_file == ""
    mounted = [filled(volume) for volume in services["rollout"]["volumes"]]
    assert f"/srv/keys:{rollout.policy.trusted_keys}:ro" in mounted
    assert f"/srv/regression.jsonl:{rollout.gate.regression_prompts}:ro" in mounted


def test_ports_are_published_on_loopback_alone(compose: Any) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_are_pinned(compose: Any) -> None:
    for name, service in compose["services"].items():
        _, _, tag = service["image"].partition(":")
        assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?", tag), f"{name}: {service['image']}"


def test_volumes_are_declared_and_used(compose: Any) -> None:
    used = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith((".", "$"))
    }
    assert used == set(compose["volumes"])


def test_learner_rollout_and_engine_see_versions_at_one_path(compose: Any) -> None:
    place = "/var/lib/headrace/versions"
    writable = {"learner": "", "rollout": ":ro", "vllm-cpu": ":ro", "vllm-gpu": ":ro"}
    for name, mode in writable.items():
        assert f"versions:{place}{mode}" in compose["services"][name]["volumes"]


def test_whoever_reads_or_compares_the_base_sees_its_files(compose: Any) -> None:
    for name in ("learner", "rollout", "gateway", "vllm-cpu", "vllm-gpu"):
        mounted = [filled(volume) for volume in compose["services"][name]["volumes"]]
        assert "/srv/model:/models/base:ro" in mounted, name


def test_dependencies_exist_and_wait_for_health(compose: Any) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in dict_of(service.get("depends_on", {})).items():
            assert needed in services, f"{name} needs {needed}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed]


def test_collector_takes_spans_where_the_processes_send_them(compose: Any) -> None:
    config = yaml.safe_load((DEPLOY / "otel-collector.yaml").read_text())
    endpoint = settings_of(compose["services"]["gateway"]).tracing.otlp_endpoint
    host, _, port = endpoint.removeprefix("http://").partition(":")
    assert host in compose["services"]
    assert config["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(f":{port}")
    pipeline = config["service"]["pipelines"]["traces"]
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) <= set(config[kind])
    assert config["exporters"]["otlp/jaeger"]["endpoint"].split(":")[0] in compose["services"]


def test_image_holds_every_package_and_nothing_runs_as_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = set(re.findall(r"(?m)^COPY (\w+) \1$", text))
    pyproject = (DEPLOY.parent / "pyproject.toml").read_text()
    (packages,) = re.findall(r"(?m)^packages = (\[.*\])$", pyproject)
    assert copied == set(json.loads(packages))
    allowed = set(re.findall(r"(?m)^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text()))
    assert copied <= allowed
    for names in re.findall(r"(?m)^COPY ((?:[\w.]+ )+)\./$", text):
        assert set(names.split()) <= allowed
    users = re.findall(r"(?m)^USER (\w+)$", text)
    assert users[-1] == "headrace"
    assert text.index("USER headrace") > text.rindex("RUN ")


def test_image_has_the_torch_of_the_platform() -> None:
    (pinned,) = re.findall(r'"(torch==[\d.]+)"', (DEPLOY.parent / "pyproject.toml").read_text())
    assert f'"{pinned}+cpu"' in (DEPLOY / "Dockerfile").read_text()


def flattened(command: list[str]) -> list[str]:
    return [word for argument in command for word in argument.split("=", 1)]


def dict_of(depends_on: Any) -> dict[str, Any]:
    if isinstance(depends_on, list):
        return {name: {"condition": "service_started"} for name in depends_on}
    assert isinstance(depends_on, dict)
    return depends_on
