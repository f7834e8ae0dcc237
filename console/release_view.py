"""What one version is made of, read from its directory: origin, samples, files checked, verdict.

It needs no broker: all of it lies below the state directory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from msgspec import Struct

from console.evidence import ledger_lines, payment_lines, version_directories
from contracts.errors import ManifestError, SettingsError, UnavailableError
from contracts.events import BASE_VERSION
from contracts.evidence import GateReport, read_report, reports_of
from contracts.manifest import Manifest, hash_files, read_manifest, verify_signed
from contracts.settings import Settings
from contracts.signing import trusted_keys
from learner.ledger import UNRATED

MOST_NAMED = 5

STATES = "states"
FileState = Literal["sound", "differs", "missing", "unexpected"]


class FileRow(Struct, frozen=True, kw_only=True):
    """A file of a version; ``sha256`` is what the manifest says, or that of an unexpected one."""

    name: str
    sha256: str
    state: FileState


class ActionRow(Struct, frozen=True, kw_only=True):
    """What the samples of one action said, and what was taught of them.

    ``reward_mean`` is over ``samples`` with an observed reward, None where there are none.
    ``violation_rate`` is over all ``decisions``, each once: what the monitor saw does not depend on
    whether somebody rated it. ``taught`` is the sum of coefficients in the loss, of earlier samples
    that were put right, too: above 0 the action was encouraged. What is repeated is not in it.
    """

    action: str
    samples: int
    reward_mean: float | None
    decisions: int
    violation_rate: float | None
    taught: float


class ReleaseView(Struct, frozen=True, kw_only=True):
    """A version as it lies on disk.

    ``manifest`` is None when its files are gone or unreadable. ``fault`` says why it would not be
    loaded, "" when it would. ``state_kept``: `headrace replay` can start from it. ``outcomes``
    counts the ledger: samples ``used``, and the others by why they taught nothing; ``actions`` is
    the same ledger by action, the most frequent first, ``corrections`` counts whose corrections
    were imitated. ``put_right`` counts the payments (`learner.ledger.Payment`). ``ledger`` and
    ``payments`` are empty unless they are asked for.
    """

    version: str
    directory: str
    manifest: Manifest | None
    fault: str
    files: tuple[FileRow, ...]
    state_kept: bool
    outcomes: dict[str, int]
    gate: GateReport | None
    actions: tuple[ActionRow, ...] = ()
    corrections: dict[str, int] = {}
    ledger: tuple[dict[str, Any], ...] = ()
    put_right: int = 0
    payments: tuple[dict[str, Any], ...] = ()

    @property
    def sound(self) -> bool:
        """Whether id, files and signature are as they must be."""
        return not self.fault


def release_view(settings: Settings, beginning: str, *, samples: bool = False) -> ReleaseView:
    """Return the one version whose id begins so; ``samples``: with its ledger.

    SettingsError when none does, or several do.
    """
    directories = version_directories(settings.state_dir / "versions")
    reports = {version: policy for policy, version in reports_of(settings.state_dir)}
    version = the_version(directories.keys() | reports.keys(), beginning, settings.state_dir)
    gate = (
        read_report(settings.state_dir, reports[version], version) if version in reports else None
    )
    directory = directories.get(version)
    if directory is None:
        fault = f"its files are not below {settings.state_dir / 'versions'}"
        return ReleaseView(
            version=version,
            directory="",
            manifest=None,
            fault=fault,
            files=(),
            state_kept=False,
            outcomes={},
            gate=gate,
        )
    ledger, paid = _held(ledger_lines, directory), _held(payment_lines, directory)
    return ReleaseView(
        version=version,
        directory=str(directory),
        manifest=_manifest(directory),
        fault=_fault(settings, directory, version),
        files=_files(directory),
        state_kept=(settings.state_dir / STATES / directory.parent.name / version).is_dir(),
        outcomes=dict(Counter(str(line.get("outcome")) for line in ledger).most_common()),
        gate=gate,
        actions=_actions(ledger, paid),
        corrections=dict(Counter(str(by) for line in ledger if (by := line.get("correction")))),
        ledger=ledger if samples else (),
        put_right=len(paid),
        payments=paid if samples else (),
    )


def the_version(known: Collection[str], beginning: str, state_dir: Path) -> str:
    """Return the only version whose id begins so; SettingsError says which others there are."""
    if beginning == BASE_VERSION:
        raise SettingsError("'base' is the model itself, which no version made; give a version")
    found = sorted(version for version in known if beginning and version.startswith(beginning))
    if len(found) == 1:
        return found[0]
    shown = ", ".join(
        version[: max(12, len(beginning) + 4)] for version in (found or sorted(known))[:MOST_NAMED]
    )
    if found:
        raise SettingsError(f"{beginning!r} begins {len(found)} versions: {shown}; give more of it")
    there = f"there are {len(known)}, such as {shown}" if known else "there is none yet"
    raise SettingsError(
        f"no version below {state_dir} begins with {beginning!r}; {there}; "
        "'headrace releases list' shows those that were released"
    )


def _manifest(directory: Path) -> Manifest | None:
    try:
        return read_manifest(directory)[1]
    except ManifestError:
        return None


def _held(
    lines: Callable[[Path], list[dict[str, Any]]], directory: Path
) -> tuple[dict[str, Any], ...]:
    """Return the lines; none when the file is not what it was, which its hash then shows."""
    try:
        return tuple(lines(directory))
    except ManifestError:
        return ()


def _actions(
    ledger: Sequence[Mapping[str, Any]], payments: Sequence[Mapping[str, Any]]
) -> tuple[ActionRow, ...]:
    """Return the rows of actions; a mean over all would hide what one of them came to."""
    by_action: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    taught: dict[str, float] = defaultdict(float)
    for line in (*ledger, *payments):
        taught[str(line.get("action") or "-")] += float(line.get("coefficient", 0.0))
    for line in ledger:
        by_action[str(line.get("action") or "-")].append(line)
    rows = [_action(action, by_action.get(action, ()), taught[action]) for action in taught]
    return tuple(sorted(rows, key=lambda row: (-row.decisions, row.action)))


def _action(action: str, lines: Sequence[Mapping[str, Any]], taught: float) -> ActionRow:
    rewards = [
        float(line.get("reward", 0.0))
        for line in lines
        if line.get("outcome") not in UNRATED and not line.get("reward_model")
    ]
    # Of several samples of a decision the newest holds.
    broken = {line.get("decision_id"): bool(line.get("violation")) for line in lines}
    return ActionRow(
        action=action,
        samples=len(rewards),
        reward_mean=fmean(rewards) if rewards else None,
        decisions=len(broken),
        violation_rate=fmean(broken.values()) if broken else None,
        taught=taught,
    )


def _fault(settings: Settings, directory: Path, version: str) -> str:
    try:
        verify_signed(directory, version, trusted_keys(settings))
    except ManifestError as error:
        return str(error)
    return ""


def _files(directory: Path) -> tuple[FileRow, ...]:
    manifest = _manifest(directory)
    wanted = manifest.files if manifest else {}
    try:
        found = hash_files(directory)
    except (ManifestError, OSError) as error:
        raise UnavailableError(f"the files of {directory} cannot be read: {error}") from error
    return tuple(
        FileRow(
            name=name,
            sha256=wanted.get(name) or found[name],
            state=_state(wanted.get(name), found.get(name)),
        )
        for name in sorted(wanted.keys() | found.keys())
    )


def _state(wanted: str | None, found: str | None) -> FileState:
    if wanted is None:
        return "unexpected"
    if found is None:
        return "missing"
    return "sound" if wanted == found else "differs"
