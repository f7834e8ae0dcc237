"""The line of versions that leads to one: each the parent of the next, back to the base.

What it says was read comes from the versions' own manifests and ledgers, checked by their hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from contracts.errors import ManifestError, SettingsError
from contracts.events import BASE_VERSION
from contracts.manifest import Manifest, file_sha256, read_manifest, read_pinned, verify
from contracts.settings import Learner, Practice, Settings
from guard.rules import compile_rules, digest_of
from learner.directory import versions_directory
from learner.ledger import Outcome
from learner.publish import (
    LEDGER,
    LEDGER_FROM,
    OF_NO_MATTER,
    OTHERS_THAT_MATTER,
    PROCESSES,
)
from learner.version_state import state_of

MOST_NAMED = 8


class Link(Struct, frozen=True):
    """One version of a line."""

    version: str
    directory: Path
    manifest: Manifest

    @property
    def first(self) -> int:
        """The first offset of `samples` that it may have read."""
        return self.manifest.trained_on[0].first

    @property
    def next(self) -> int:
        """The first offset that it has not read."""
        return self.manifest.trained_on[0].next

    @property
    def silent_until(self) -> int:
        """Up to here nobody but judges had rated anything, and the ledger has no lines; 0 if it
        has all."""
        return int(self.manifest.config.get(LEDGER_FROM, 0))

    @property
    def begins(self) -> int:
        """The first offset of a sample that it has read, as far as its files can tell."""
        least = min((outcome.offset for outcome in self.ledger()), default=self.first)
        return self.first if self.silent_until else least

    def ledger(self) -> Iterator[Outcome]:
        """Yield what it did with every sample it read, but for those before `silent_until`.

        ManifestError when the file is not the one that the manifest has the hash of.
        """
        raw = read_pinned(self.directory, self.manifest, LEDGER)
        yield from (msgspec.json.decode(line, type=Outcome) for line in raw.splitlines())


def _practice(settings: Settings, recorded: Practice, link: Link) -> Practice:
    """Return how a version practised, with the place of the file whose sha256 it has recorded.

    SettingsError when the file is another, or the guard's rules, which give the rewards.
    """
    if not recorded.prompts:
        return recorded
    rules = link.manifest.config.get("practice_rules")
    if rules is not None and rules != (mine := digest_of(compile_rules(settings))):
        raise SettingsError(
            f"version {link.version[:12]} practised by rules of the guard with sha256 {rules}, and "
            f"those that are set have {mine}; set guard, streams.disallowed_topics and "
            "streams.safe_actions as they were then, the file of canary strings included"
        )
    path = settings.learner.practice.prompts
    if not path or not Path(path).is_file() or file_sha256(Path(path)) != recorded.prompts:
        raise SettingsError(
            f"version {link.version[:12]} practised on a file with sha256 {recorded.prompts}, and "
            f"learner.practice.prompts ({path or 'empty'}) is another; name that one there"
        )
    return replace(recorded, prompts=path)


def _reward_model(settings: Settings, recorded: str, link: Link) -> str:
    """Return the directory of the reward model that a version was learned with, "" for none.

    It is the one that is set, or lies beside it: a newer one may have taken its place.
    """
    named = settings.learner.reward_model
    if not recorded:
        return ""
    if named and read_manifest(Path(named))[0] == recorded:
        return named
    beside = Path(named).parent / recorded
    if named and beside.is_dir():
        return str(beside)
    raise SettingsError(
        f"version {link.version[:12]} was learned with reward model {recorded[:12]}, and "
        f"learner.reward_model ({named or 'empty'}) is another; name that one there, or put it "
        "beside the other"
    )


def line_of(settings: Settings, end: str) -> list[Link]:
    """Return the versions from the oldest whose files are there to ``end``.

    ManifestError when the files of ``end`` are not those of a version that learned.
    """
    root, found, version = versions_directory(settings), list[Link](), end
    while version != BASE_VERSION and (not found or (root / version).is_dir()):
        named, manifest = read_manifest(root / version)
        if named != version or len(manifest.trained_on) != 1:
            raise ManifestError(
                f"{root / version} is no version that the learner made (a drill's, or changed); "
                "give one that 'headrace releases show' finds sound and with offsets"
            )
        found.append(Link(version, root / version, manifest))
        version = manifest.parent
    return found[::-1]


def with_state(settings: Settings, line: Sequence[Link]) -> list[Link]:
    """Return the versions of a line that can be learned on from."""
    return [link for link in line if state_of(settings, link.version) is not None]


def after(settings: Settings, line: Sequence[Link], start: str) -> list[Link]:
    """Return the versions after ``start``, checked; SettingsError says which starts there are."""
    kept = {link.version for link in with_state(settings, line[:-1])}
    whole = line[0].manifest.parent == BASE_VERSION
    allowed = [*([BASE_VERSION] if whole else []), *(v.version for v in line if v.version in kept)]
    if start not in allowed:
        names = ", ".join(version[:12] for version in allowed[-MOST_NAMED:]) or "none is left"
        raise SettingsError(
            f"{start[:12]} is no version to start from: it must come before "
            f"{line[-1].version[:12]} in its line, and its state must be kept "
            f"(learner.keep_states); there are: {names}"
        )
    part = [link for link in line if start == BASE_VERSION]
    if start != BASE_VERSION:
        place = [link.version for link in line].index(start)
        part = list(line[place + 1 :])
    for link in part:
        verify(link.directory, link.version)
    return part


def check_one_process(part: Sequence[Link]) -> None:
    """Raise SettingsError for what several processes learned: one adds up in another order."""
    for link in reversed(part):
        if (processes := link.manifest.config.get(PROCESSES, 1)) != 1:
            raise SettingsError(
                f"version {link.version[:12]} was learned by {processes} processes of torchrun, "
                "and a replay is one process, whose sums are not the same to the last bit; give "
                "--from that version or a later one, and --to one that a single process learned"
            )


def before(line: Sequence[Link], start: str) -> list[Link]:
    """Return the versions before ``start``."""
    return list(line[: [link.version for link in line].index(start)])


def settings_of(settings: Settings, link: Link) -> Settings:
    """Return the settings with all that a version depends on as it was for this one.

    SettingsError when this code does not know them.
    """
    config = link.manifest.config
    mine = {name: getattr(settings.learner, name) for name in OF_NO_MATTER}
    try:
        learner = msgspec.convert({**config["learner"], **mine}, Learner)
        learner = replace(
            learner,
            practice=_practice(settings, learner.practice, link),
            reward_model=_reward_model(settings, config.get("reward_model", ""), link),
        )
    except (msgspec.ValidationError, KeyError) as error:
        raise SettingsError(
            f"version {link.version[:12]} was learned with settings that this release does not "
            f"know ({error}); replay it with the one that made it: {link.manifest.code}"
        ) from error
    found = replace(settings, learner=learner)
    for name in OTHERS_THAT_MATTER.keys() & config.keys():
        value = config[name]
        at = OTHERS_THAT_MATTER[name].split(".")
        found = _with(found, at, tuple(value) if isinstance(value, list) else value)
    return found


def _with(settings: Any, at: Sequence[str], value: object) -> Any:
    """Return settings, or a part of them, with the field at a path set."""
    name, *rest = at
    inner = _with(getattr(settings, name), rest, value) if rest else value
    return replace(settings, **{name: inner})
