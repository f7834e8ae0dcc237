from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from console.child import Program
from console.demo import next_commands
from console.demo_settings import DemoPolicy, demo_settings
from console.doctor import doctor_text, examine, is_healthy
from console.log_access import newest, remember
from console.main import main
from console.programs import http_missing
from console.stack import kept_secret, open_stack, resolve
from console.stack_file import ProcessEntry, StackFile, start_time, write_stack
from console.status import FIRST_BEAT_SECONDS, is_sound, status_of, status_text
from console.supervisor import Addresses, Supervisor
from console.topic_table import topic_rows, topics_text
from console.waiting import Shown
from contracts.clock import ManualClock, SystemClock
from contracts.errors import UnavailableError
from contracts.heartbeat import FRESH_SECONDS, beat
from contracts.settings import Engine, Features, Gateway, Kafka, Policy, Settings, load_settings
from contracts.topics import TOPICS
from tests.until import until


def test_help_needs_no_heavy_library() -> None:
    heavy = "['torch', 'faust', 'feast', 'kafka', 'transformers', 'matplotlib', 'aiohttp']"
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom console.main import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        f"assert not [name for name in {heavy} if name in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_status_shows_the_heartbeat_and_names_a_process_that_died(
    state_dir: Path, shown: Shown
) -> None:
    program = Program(
        name="learner",
        command=(sys.executable, "-c", "import time; time.sleep(600)"),
        missing=lambda _pid: "",
    )
    supervisor = Supervisor(state_dir, [program], Addresses(kafka="k:1"), shown)
    supervisor.start()
    try:
        [row] = status_of(state_dir, SystemClock()).processes
        assert row.age_seconds is None
        assert row.up_seconds is not None
        assert 0 <= row.up_seconds < 60
        # The heartbeat of another pid is that of an earlier run.
        beat(state_dir, "learner", SystemClock(), ready=True, lag=3, counts={"batches": 2})
        path = state_dir / "run" / "learner.json"
        path.write_text(path.read_text().replace(f'"pid":{os.getpid()}', f'"pid":{row.pid}'))
        status = status_of(state_dir, SystemClock())
        assert is_sound(status)
        assert (status.processes[0].lag, status.processes[0].counts) == (3, {"batches": 2})
        assert "batches=2" in status_text(status)
        os.kill(row.pid, signal.SIGKILL)
        until("the death", lambda: status_of(state_dir, SystemClock()).processes[0].pid == 0)
        status = status_of(state_dir, SystemClock())
        assert (status.phase, status.processes[0].state) == ("running", "dead")
        assert not is_sound(status)
    finally:
        supervisor.stop()


@pytest.mark.parametrize(
    ("beat_age", "up_seconds", "state"),
    [
        (FRESH_SECONDS - 1, 9000.0, "running"),
        (FRESH_SECONDS + 1, 9000.0, "silent"),
        (None, FIRST_BEAT_SECONDS - 1, "running"),
        (None, FIRST_BEAT_SECONDS + 1, "silent"),
    ],
)
def test_status_calls_a_process_silent_that_hangs(
    state_dir: Path, beat_age: float | None, up_seconds: float, state: str
) -> None:
    started = start_time(os.getpid())
    clock = ManualClock(datetime.fromtimestamp(started + up_seconds, UTC))
    write_stack(
        state_dir,
        StackFile(
            supervisor_pid=os.getpid(),
            supervisor_started=started,
            phase="running",
            kafka="",
            engine="",
            engine_kind="",
            gateway="",
            processes=(
                ProcessEntry(name="learner", state="running", pid=os.getpid(), started=started),
            ),
        ),
    )
    if beat_age is not None:
        then = ManualClock(clock.now() - timedelta(seconds=beat_age))
        beat(state_dir, "learner", then, ready=True)
    status = status_of(state_dir, clock)
    assert status.processes[0].state == state
    assert is_sound(status) is (state == "running")


def test_status_without_a_stack_says_how_to_start_one(tmp_path: Path) -> None:
    settings = tmp_path / "headrace.yaml"
    settings.write_text(f"state_dir: {tmp_path / 'state'}\n")
    answer = CliRunner().invoke(main, ["--settings", str(settings), "status"])
    assert answer.exit_code == 1
    assert "headrace up" in answer.output


def test_health_follows_the_heartbeat(tmp_path: Path) -> None:
    settings = tmp_path / "headrace.yaml"
    settings.write_text(f"state_dir: {tmp_path / 'state'}\n")
    arguments = ["--settings", str(settings), "health", "learner"]
    assert CliRunner().invoke(main, arguments).exit_code == 1
    beat(tmp_path / "state", "learner", SystemClock(), ready=False, note="loading the model")
    assert "loading the model" in CliRunner().invoke(main, arguments).output
    beat(tmp_path / "state", "learner", SystemClock(), ready=True)
    assert CliRunner().invoke(main, arguments).exit_code == 0


def test_doctor_names_a_missing_thing_and_its_cure(state_dir: Path) -> None:
    settings = Settings(
        state_dir=state_dir,
        kafka=Kafka(bootstrap="127.0.0.1:1"),
        engine=Engine(kind="transformers", url="http://127.0.0.1:1"),
        policy=Policy(model="/no/such/model"),
    )
    checks = {check.name: check for check in examine(settings)}
    assert not is_healthy(list(checks.values()))
    for name in ("broker", "engine", "model"):
        assert not checks[name].ok
        assert checks[name].cure in doctor_text(list(checks.values()))
    assert checks["python"].ok


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kafka", "localhost:abc"), "HOST:PORT"),
        (("--engine", "http://127.0.0.1:abc"), "http://HOST:PORT"),
        (("--engine", "http://[::1"), "http://HOST:PORT"),
    ],
)
def test_an_address_on_the_command_line_that_cannot_be_one_is_refused(
    tmp_path: Path, arguments: tuple[str, str], said: str
) -> None:
    settings = tmp_path / "headrace.yaml"
    settings.write_text(f"state_dir: {tmp_path}\n")
    answer = CliRunner().invoke(main, ["--settings", str(settings), "up", *arguments])
    assert answer.exit_code == 1
    assert arguments[1] in answer.output
    assert said in answer.output


def test_a_server_that_speaks_no_http_is_an_engine_that_does_not_answer() -> None:
    def greet() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"220 mail.example ready\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=greet)
        thread.start()
        words = http_missing(f"http://127.0.0.1:{server.getsockname()[1]}/health")
        thread.join()
    assert "220 mail.example ready" in words
    assert "GET http://127.0.0.1" in http_missing("http://127.0.0.1:abc/health")


def test_doctor_says_that_a_redis_of_an_unknown_name_does_not_answer(state_dir: Path) -> None:
    features = Features(online="redis", redis="redis.invalid:6379,db=1")
    settings = Settings(state_dir=state_dir, engine=Engine(kind="transformers"), features=features)
    [found] = [check for check in examine(settings) if check.name == "feature store"]
    assert (found.ok, found.found) == (False, "redis redis.invalid:6379 does not answer")


def test_a_broker_that_refuses_is_told_in_one_message(kafka: Kafka, tmp_path: Path) -> None:
    settings = tmp_path / "headrace.yaml"
    settings.write_text(
        f"state_dir: {tmp_path}\n"
        f"kafka: {{bootstrap: '{kafka.bootstrap}', prefix: 'no/such ', partitions: 1}}\n"
    )
    answer = CliRunner().invoke(main, ["--settings", str(settings), "topics", "create"])
    assert answer.exit_code == 1
    assert isinstance(answer.exception, SystemExit), answer.exception
    assert "Error: the broker refused" in answer.output


def test_doctor_writes_json_that_says_what_is_needed(tmp_path: Path) -> None:
    settings = tmp_path / "headrace.yaml"
    settings.write_text(f"state_dir: {tmp_path}\nengine: {{kind: transformers}}\n")
    answer = CliRunner().invoke(main, ["--settings", str(settings), "doctor", "--json"])
    names = {check["name"] for check in json.loads(answer.output) if check["ok"]}
    assert {"python", "platform", "broker", "engine"} <= names


def test_topics_lists_what_the_broker_has(kafka: Kafka) -> None:
    rows = topic_rows(kafka)
    assert [row.topic for row in rows] == [kafka.prefix + topic.name for topic in TOPICS]
    assert all(row.records == 0 for row in rows)
    assert "dead-letters" in topics_text(rows)


def test_the_secret_is_made_once_and_for_its_owner_alone(state_dir: Path) -> None:
    secret = kept_secret(state_dir, "feedback_secret")
    assert len(secret) == 64
    assert kept_secret(state_dir, "feedback_secret") == secret
    path = state_dir / "secrets" / "feedback_secret"
    assert path.stat().st_mode & 0o077 == 0


def test_the_stack_decides_ports_addresses_and_the_secret(state_dir: Path, shown: Shown) -> None:
    given = Settings(state_dir=state_dir, gateway=Gateway(port=0))
    settings = resolve(given, shown)
    assert settings.kafka.bootstrap.startswith("127.0.0.1:")
    assert settings.engine.url == f"http://127.0.0.1:{settings.engine.port}"
    assert settings.gateway.port > 0
    assert settings.gateway.feedback_secret


def test_a_stack_without_a_model_or_with_a_taken_port_says_what_to_do(
    state_dir: Path, shown: Shown
) -> None:
    with pytest.raises(UnavailableError, match="--model PATH"):
        open_stack(Settings(state_dir=state_dir), 1, shown)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = Settings(state_dir=state_dir, policy=Policy(model="m"), gateway=Gateway(port=port))
        with pytest.raises(UnavailableError, match=f"port {port} of 127.0.0.1 is taken"):
            open_stack(taken, 1, shown)


def test_the_newest_run_is_looked_at_when_the_state_directory_has_no_stack(tmp_path: Path) -> None:
    given = Settings(state_dir=tmp_path / "state")
    run_dir = tmp_path / "state" / "runs" / "one"
    run_dir.mkdir(parents=True)
    (run_dir / "headrace.yaml").write_text(f"state_dir: {run_dir}\nkafka: {{prefix: x-}}\n")
    assert newest(given) == given
    remember(given.state_dir, run_dir)
    assert newest(given).kafka.prefix == "x-"
    (given.state_dir / "broker").mkdir()
    assert newest(given) == given


def test_the_commands_at_the_end_of_a_demo_look_at_its_run(tmp_path: Path) -> None:
    """An earlier ``headrace up`` in the state directory has a log of its own."""
    given = Settings(state_dir=tmp_path / "my state")
    (given.state_dir / "broker").mkdir(parents=True)
    run_dir = given.state_dir / "runs" / "one"
    demo_settings(given, run_dir, "transformers", DemoPolicy(model="m"), {})
    remember(given.state_dir, run_dir)
    explain, releases = next_commands(run_dir, "decision-1").splitlines()
    for line, end in ((explain, ["explain", "decision-1"]), (releases, ["releases"])):
        command = shlex.split(line.partition(":")[2])
        assert command[:2] == ["headrace", "--settings"]
        assert command[3:] == end
        assert newest(load_settings(Path(command[2]), {})).state_dir == run_dir
