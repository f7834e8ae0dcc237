"""Reaches the event log of a stack, running or not, and finds the newest run of the demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from console.stack_file import read_stack, supervisor_runs
from contracts.errors import UnavailableError
from contracts.settings import Kafka, Settings, load_settings

LATEST = "latest"
SETTINGS_NAME = "headrace.yaml"
ANSWER_SECONDS = 15.0


def newest(settings: Settings) -> Settings:
    """Return the settings of the newest demo run when the state directory holds no stack itself."""
    own = settings.state_dir / "run" / "stack.json"
    pointer = settings.state_dir / LATEST
    if own.exists() or (settings.state_dir / "broker").exists() or not pointer.exists():
        return settings
    run_dir = Path(pointer.read_text().strip())
    written = run_dir / SETTINGS_NAME
    return load_settings(written, {}) if written.exists() else settings


def remember(state_dir: Path, run_dir: Path) -> None:
    """Make ``run_dir`` the newest run of ``state_dir``."""
    state_dir.mkdir(parents=True, exist_ok=True)
    (state_dir / LATEST).write_text(f"{run_dir.absolute()}\n")


@contextmanager
def open_log(settings: Settings) -> Iterator[Kafka]:
    """Give the broker that has the log: the running stack's, the one in the settings, or one
    started on the stopped stack's data for as long as the block runs."""
    stack = read_stack(settings.state_dir)
    if stack is not None and (supervisor_runs(stack) or settings.kafka.bootstrap):
        yield _answering(replace(settings.kafka, bootstrap=stack.kafka))
    elif settings.kafka.bootstrap and not (settings.state_dir / "broker").exists():
        yield _answering(settings.kafka)
    else:
        with _stored_log(settings) as kafka:
            yield kafka


@contextmanager
def _stored_log(settings: Settings) -> Iterator[Kafka]:
    from console.local_broker import LocalBroker

    data_dir = settings.state_dir / "broker"
    if not data_dir.exists():
        raise UnavailableError(
            f"there is no event log below {settings.state_dir}; run 'headrace demo' or "
            "'headrace up' first, or name your broker in kafka.bootstrap"
        )
    with LocalBroker(data_dir) as broker:
        yield replace(settings.kafka, bootstrap=broker.kafka.bootstrap)


def _answering(kafka: Kafka) -> Kafka:
    from contracts.broker import wait_for_broker

    wait_for_broker(kafka, ANSWER_SECONDS)
    return kafka
