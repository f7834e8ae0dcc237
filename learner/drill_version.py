"""Writes a version for a drill as the learner writes its own: pinned by a manifest that says so."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct
from msgspec.structs import replace

from contracts.clock import Clock
from contracts.events import BASE_VERSION
from contracts.evidence import ReleaseEvidence, write_evidence
from contracts.manifest import Manifest
from contracts.settings import Settings
from contracts.signing import signing_key
from learner.adapters import load_policy, save_adapter
from learner.checkpoint import newest_progress
from learner.directory import versions_directory, write_signed
from learner.drill_adapter import Likeness, read_prompts, shape
from learner.evaluation import release_evidence
from learner.policy import Policy
from learner.progress import Progress
from learner.publish import LEDGER, code_version
from learner.reward_model import named_reward_model


class DrillOrder(Struct, frozen=True, kw_only=True):
    """What is wanted, and how many of it: equal weights, but each a version of its own.

    ``parent`` is the directory of the version it starts from, None: the base.
    """

    drill: str
    likeness: Likeness
    sequence: int
    seed: int
    copies: int = 1
    skip_gate: bool = False
    parent: Path | None = None
    prompts: Path | None = None


class DrillVersion(Struct, frozen=True):
    """What ``drill-adapter`` prints of a version: its id, and where it lies."""

    version: str
    directory: str


def make_versions(settings: Settings, order: DrillOrder, clock: Clock) -> list[DrillVersion]:
    """Make the adapter and write it, signed, beside the policy's versions, under ids of its own.

    SettingsError when the parent's adapters do not fit the base, or there is no key to sign with.
    """
    key = signing_key(settings)
    policy = load_policy(settings)
    parent = order.parent.name if order.parent else BASE_VERSION
    prompts = read_prompts(order.prompts) if order.prompts else []
    shape(policy, order.likeness, order.parent, prompts, order.seed)
    evidence = _evidence(settings, policy, order, parent)
    made = []
    for number in range(order.copies):
        manifest = _manifest(policy, order, parent, number, settings.policy.name, clock.now())
        made.append(_write(settings, policy, manifest, evidence, key))
    return made


def _evidence(
    settings: Settings, policy: Policy, order: DrillOrder, parent: str
) -> ReleaseEvidence:
    """Return what the judged answers that the learner has kept say of the drill's weights."""
    root = settings.state_dir / "checkpoints" / settings.policy.name
    progress = newest_progress(root) or Progress(policy=settings.policy.name, base=policy.base)
    found = release_evidence(
        policy, replace(progress, parent=parent), settings, named_reward_model(settings)
    )
    return replace(found, sequence=order.sequence)


def _write(
    settings: Settings,
    policy: Policy,
    manifest: Manifest,
    evidence: ReleaseEvidence,
    key: Ed25519PrivateKey,
) -> DrillVersion:
    def fill(directory: Path) -> None:
        save_adapter(policy, directory)
        write_evidence(directory, evidence)
        (directory / LEDGER).write_bytes(b"")  # it learned from no sample

    final = write_signed(versions_directory(settings), manifest, key, fill)
    return DrillVersion(final.name, str(final.resolve()))


def _manifest(
    policy: Policy, order: DrillOrder, parent: str, number: int, name: str, now: datetime
) -> Manifest:
    """Return a manifest without files; its time makes a drill that is repeated another version."""
    drill = {"kind": order.drill, "skip_gate": order.skip_gate, "number": number}
    return Manifest(
        policy=name,
        sequence=order.sequence,
        form="lora",
        base=policy.base,
        parent=parent,
        as_of=now,
        newest_feedback_time=now,
        trained_on=(),
        samples=0,
        config={"drill": drill, "seed": order.seed},
        code=code_version(),
        files={},
    )
