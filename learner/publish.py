"""Turns the present adapters into a policy version: a directory whose manifest pins every byte.

Made twice of equal weights, progress, evidence and settings it has the same id, if code, libraries,
kind of device and number of processes are the same, too.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.metadata import version as installed_version
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct

from contracts.clock import Clock
from contracts.codec import to_json
from contracts.errors import ManifestError
from contracts.events import Release
from contracts.evidence import ReleaseEvidence, write_evidence
from contracts.ids import derived_id
from contracts.manifest import Manifest, OffsetRange, file_sha256, verify
from contracts.settings import Learner, Settings
from contracts.signing import signing_key
from contracts.topics import SAMPLES
from learner.adapters import save_adapter
from learner.directory import CrashPoint, clear_partial, no_crash, versions_directory, write_signed
from learner.policy import Policy
from learner.progress import Progress
from learner.telemetry import release_figures

LEDGER = "ledger.jsonl"
PAYMENTS = "payments.jsonl"
LEDGER_FROM = "ledger_from"
"""In ``config`` of the first version's manifest, where batches were read before anybody rated
anything who is no judge."""

PROCESSES = "processes"
"""In ``config`` of a manifest: how many learned the version together (`learner.ranks`)."""

LIBRARIES = ("transformers", "tokenizers", "peft", "safetensors", "numpy")
"""In ``config`` of a manifest beside torch: what else a policy is loaded, run and saved by, and its
evidence computed by."""

OWN_PACKAGES = ("contracts", "feature_store", "guard", "learner")
"""Whose code the learner runs."""

OF_NO_MATTER = frozenset({"signing_key_file", "keep_checkpoints", "keep_states", "reward_model"})
"""Settings of the learner that no version depends on."""

OTHERS_THAT_MATTER = {
    "max_model_len": "engine.max_model_len",
    "max_open_decisions": "streams.max_open_decisions",
    "judge_share": "policy.judge_share",
    "evaluation_samples": "gate.evaluation_samples",
    "level": "gate.level",
    "refuse_actions": "gate.watch.refuse_actions",
    "clarify_actions": "gate.watch.clarify_actions",
    "refuse_patterns": "gate.watch.refuse_patterns",
    "clarify_patterns": "gate.watch.clarify_patterns",
}
"""Settings beside the learner's that a version depends on: their names in ``config`` of its
manifest, and where they are set. A replay puts them back from there, see
`learner.version_line.settings_of`."""


class Published(Struct, frozen=True):
    """A version on disk."""

    version: str
    directory: Path
    manifest: Manifest


def publish(
    settings: Settings,
    policy: Policy,
    progress: Progress,
    evidence: ReleaseEvidence,
    crash_point: CrashPoint = no_crash,
    *,
    state: str = "",
    practice_rules: str = "",
) -> Published:
    """Write the next version, signed; an equal one that is already there is kept, a torn one is
    written again.

    The ledger lists every sample read since the parent, used or dropped and why, the payments what
    was taught of earlier ones whose reward changed, and ``evidence`` lies beside them; see
    `learner.evaluation`. ``state`` is the hash of the state it is published
    with, see `learner.version_state`, ``practice_rules`` that of the guard's rules which rewarded
    practice, if any was. Raises ManifestError when what lies there is not what
    was written. Crash points: ``inside-version``, ``renamed-version``.
    """
    root = versions_directory(settings)
    manifest = _manifest(
        settings,
        policy,
        progress,
        state,
        evidence.reward_model,
        practice_rules if progress.practice else "",
    )

    def fill(directory: Path) -> None:
        save_adapter(policy, directory)
        for name, lines in ((LEDGER, progress.ledger), (PAYMENTS, progress.payments)):
            (directory / name).write_bytes(b"".join(to_json(line) + b"\n" for line in lines))
        write_evidence(directory, evidence)

    clear_partial(root)
    key = signing_key(settings)
    final = write_signed(root, manifest, key, fill, lambda name: crash_point(f"{name}-version"))
    return Published(final.name, final, verify(final, final.name))


def release_event(
    settings: Settings, published: Published, progress: Progress, clock: Clock
) -> Release:
    """Return the announcement of a version; its id follows from the version's."""
    manifest = published.manifest
    return Release(
        id=derived_id(published.version),
        time=clock.now(),
        policy=settings.policy.name,
        version=published.version,
        sequence=manifest.sequence,
        parent=manifest.parent,
        form="lora",
        location=str(published.directory.resolve()),
        newest_feedback_time=manifest.newest_feedback_time,
        metrics={"samples": float(manifest.samples), **release_figures(progress.stats)},
    )


def _manifest(
    settings: Settings,
    policy: Policy,
    progress: Progress,
    state: str,
    reward_model: str,
    practice_rules: str,
) -> Manifest:
    """Return the manifest without the hashes of files."""
    if progress.as_of is None or progress.newest_feedback_time is None:
        raise ManifestError("nothing was learned yet, so there is no version to publish")
    unlisted = progress.ledger_from > progress.first_offset
    return Manifest(
        policy=settings.policy.name,
        sequence=progress.sequence,
        form="lora",
        base=progress.base,
        parent=progress.parent,
        as_of=progress.as_of,
        newest_feedback_time=progress.newest_feedback_time,
        oldest_feedback_time=progress.oldest_feedback_time,
        trained_on=(
            OffsetRange(
                topic=SAMPLES.name,
                partition=0,
                first=progress.first_offset,
                next=progress.next_offset,
            ),
        ),
        samples=sum(1 for outcome in progress.ledger if outcome.outcome == "used"),
        users=len(progress.users),
        config={
            "anchor": progress.anchor,
            "learner": what_matters(settings.learner, progress.practice),
            **{name: attrgetter(at)(settings) for name, at in OTHERS_THAT_MATTER.items()},
            "reward_model": reward_model,
            **({LEDGER_FROM: progress.ledger_from} if unlisted else {}),
            **({"practice_rules": practice_rules} if practice_rules else {}),
            **computed_by(policy),
            PROCESSES: policy.ranks.size,
        },
        code=code_version(),
        state=state,
        files={},
    )


def computed_by(policy: Policy) -> dict[str, str]:
    """Return the number format of the base, the kind of device and the libraries it is computed by,
    by version."""
    return {
        "base_dtype": str(policy.model.dtype).removeprefix("torch."),
        "device": policy.device.type,
        "torch": str(torch.__version__),
        **{name: installed_version(name) for name in LIBRARIES},
    }


def what_matters(learner: Learner, practice: str) -> dict[str, Any]:
    """Where the key lies and how much is kept have no part in what the version is.

    Nor has the place of the file that is practised from: ``practice``, its sha256, stands for it.
    """
    found: dict[str, Any] = msgspec.to_builtins(learner)
    found["practice"]["prompts"] = practice
    return {name: value for name, value in found.items() if name not in OF_NO_MATTER}


@cache
def code_version() -> str:
    """Return the release of Headrace and a hash of the code that the learner runs."""
    hashed = code_hash(Path(__file__).parents[1])
    return f"headrace {installed_version('headrace')} {hashed[:16]}"


def code_hash(root: Path) -> str:
    """Return one hash of all source files of the learner and what it imports, below ``root``."""
    sources = sorted(path for name in OWN_PACKAGES for path in (root / name).rglob("*.py"))
    listing = {path.relative_to(root).as_posix(): file_sha256(path) for path in sources}
    return sha256(to_json(listing)).hexdigest()
