"""Makes the versions of a drill: real adapters on the stack's base, then spoiled and announced."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from console.child_environment import SIGNING_KEY_FILE, inherited_environment, with_secrets
from console.drill_kinds import DrillKind, Variant
from contracts.broker import events_to_end, make_producer, send_and_wait
from contracts.codec import encode, to_json
from contracts.errors import UnavailableError
from contracts.events import Candidate, Decision, Release
from contracts.ids import NewId
from contracts.settings import Kafka, Settings
from contracts.signing import SIGNATURE_NAME
from contracts.topics import DECISIONS, RELEASES

CLIENT_ID = "headrace-drill-release"
SOURCE = "headrace/console"
MAKE_SECONDS = 300.0
PROMPTS = 64
WEIGHTS = "adapter_model.safetensors"


class Made(Struct, frozen=True):
    """A version on disk."""

    version: str
    directory: str


def write_prompts(kafka: Kafka, policy: str, path: Path) -> None:
    """Write the prompts of the newest decisions, as the engine saw them, one JSON per line."""
    newest: deque[Decision] = deque(maxlen=PROMPTS)
    for _, event in events_to_end(kafka, (DECISIONS,), CLIENT_ID):
        if isinstance(event, Decision) and event.assignment.policy == policy:
            newest.append(event)
    lines = [to_json({"prompt_token_ids": d.prompt_token_ids}) for d in newest]
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def make_versions(
    settings: Settings, kind: DrillKind, parent: Candidate, directory: Path, **order: object
) -> list[Made]:
    """Have the learner's code make one version per variant of the kind, from ``parent``.

    UnavailableError when it cannot.
    ``order`` goes into the `learner.drill_version.DrillOrder`; files of the making go to
    ``directory``.
    """
    prompts = directory / "prompts.jsonl"
    write_prompts(settings.kafka, settings.policy.name, prompts)
    whole = {
        "drill": kind.name,
        "likeness": kind.likeness,
        "sequence": parent.sequence + 1,
        "parent": parent.location or None,
        "prompts": str(prompts),
        "copies": len(kind.variants),
        **order,
    }
    log = directory / "version.log"
    command = [sys.executable, "-m", "learner", "drill-adapter", to_json(whole).decode()]
    with log.open("ab") as output:
        try:
            done = subprocess.run(
                command,
                env=inherited_environment() | with_secrets(settings, SIGNING_KEY_FILE),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                timeout=MAKE_SECONDS,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(f"no version for the drill was made; see {log}") from error
    return [msgspec.json.decode(line, type=Made) for line in done.stdout.splitlines()]


def spoil(directory: Path, variant: Variant) -> None:
    """Do to a version's files what an intruder would, after they were hashed and signed."""
    if variant == "byte-flipped":
        path = directory / WEIGHTS
        content = bytearray(path.read_bytes())
        content[-1] ^= 0xFF
        path.write_bytes(content)
    elif variant == "unsigned":
        (directory / SIGNATURE_NAME).unlink()


def announce(
    settings: Settings, made: Made, parent: Candidate, now: datetime, new_id: NewId
) -> None:
    """Write the release event, as the learner does; DeadlineError when the broker is away."""
    event = Release(
        id=new_id(),
        time=now,
        policy=settings.policy.name,
        version=made.version,
        sequence=parent.sequence + 1,
        parent=parent.version,
        location=made.directory,
        newest_feedback_time=now,
        metrics={"drill": 1.0},
    )
    producer = make_producer(settings.kafka, CLIENT_ID)
    try:
        send_and_wait(producer, settings.kafka, encode(RELEASES, event, source=SOURCE))
    finally:
        producer.close(timeout=1.0)
