"""Where a learner goes on from, and whether the log still has what comes next."""

from __future__ import annotations

import logging
from pathlib import Path

from contracts.broker import Received
from contracts.errors import ManifestError, SettingsError, UnavailableError
from contracts.manifest import read_manifest
from contracts.settings import Settings
from contracts.topics import SAMPLES
from learner import checkpoint
from learner.directory import appeared, versions_directory
from learner.intake import sample_id_of
from learner.progress import Progress
from learner.train_state import TrainState
from learner.version_state import states_directory

_log = logging.getLogger("learner")


def restored(settings: Settings, root: Path, train: TrainState) -> Progress | None:
    """Set ``train`` to the newest sound checkpoint, or else to the newest sound state of a version.

    None when there is neither: learning begins at the beginning of the log.
    """
    if (found := checkpoint.restore(root, train)) is not None:
        return found
    for state in checkpoint.newest_first(states_directory(settings)):
        checkpoint.bring_back(root, state)
        if (found := checkpoint.restore(root, train)) is not None:
            _log.warning("no checkpoint is sound: going on from version %s", state.name[:12])
            return found
    if any(root.iterdir()):
        _log.error("no checkpoint in %s is sound: learning begins anew with the log", root)
    return None


def check_unchanged(settings: Settings, progress: Progress) -> None:
    """Raise SettingsError where a setting is not what the newest version was learned with, and what
    was learned would mean something else with another value.

    At another ``lora_alpha`` the same adapters are another policy than the one that was published;
    with another ``judge_share`` people who taught it would judge it. Nothing is known of a version
    that is gone.
    """
    try:
        _, manifest = read_manifest(versions_directory(settings) / progress.parent)
    except ManifestError:
        return
    before = manifest.config
    for name, then, now in (
        ("learner.lora_alpha", before["learner"]["lora_alpha"], settings.learner.lora_alpha),
        ("policy.judge_share", before["judge_share"], settings.policy.judge_share),
    ):
        if then != now:
            raise SettingsError(
                f"{name} is {now:g}, and version {progress.parent[:12]} was learned with {then:g}; "
                "set it back, or start anew with another policy.name"
            )


def check_log(settings: Settings, root: Path, progress: Progress, begins: int, ends: int) -> None:
    """Raise UnavailableError unless the log, from ``begins`` to before ``ends``, fits the progress.

    It may not end before what was learned from, nor begin behind what versions need that were
    published and that the progress does not know of: they could not be made again.
    """
    where, learned = f"{SAMPLES.name} at {settings.kafka.bootstrap}", progress.next_offset
    if ends < learned:
        raise UnavailableError(
            f"{where} ends at offset {ends}, but those before {learned} were learned from ({root}):"
            " the broker has lost records, or this is another log; restore the topic, name the "
            "broker that has it in kafka.bootstrap and kafka.prefix, or begin anew with another "
            "state_dir"
        )
    if begins > learned and (published := _published(settings)) >= progress.sequence:
        raise UnavailableError(
            f"{where} begins at offset {begins}, {root} has learned from those before {learned} "
            f"and published {progress.sequence - 1} versions, but there are {published}: what is "
            "between is lost; put checkpoints or states back from a copy, or begin anew with "
            "another state_dir or policy.name"
        )


def check_learned(record: Received, progress: Progress, settings: Settings) -> None:
    """Raise UnavailableError unless the newest record that was learned from is what it was: a log
    that was cut short or made anew may have grown past it since."""
    found, learned = sample_id_of(record), progress.seen[-1]
    if record.offset == progress.next_offset - 1 and found != learned:
        raise UnavailableError(
            f"{SAMPLES.name} at {settings.kafka.bootstrap} has {found or 'no sample'!r} at offset "
            f"{record.offset}, where {learned!r} was learned from: the broker has lost records, or "
            "this is another log; restore the topic, name the broker that has it in "
            "kafka.bootstrap and kafka.prefix, or begin anew with another state_dir"
        )


def _published(settings: Settings) -> int:
    """Return the number of the newest version that the learner made: a drill's read no log."""
    newest = 0
    for directory in appeared(versions_directory(settings)):
        try:
            _, manifest = read_manifest(directory)
        except ManifestError:
            continue
        if manifest.trained_on:
            newest = max(newest, manifest.sequence)
    return newest
