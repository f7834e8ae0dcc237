"""Learners killed at random: each sample counts once, and the end is bit for bit that of no death.

Real processes on a real broker, with SIGKILL at a random moment, at each crash point of a save or a
release and shortly after one; files of what was written last are cut off, the broker restarts.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import msgspec
import pytest

from console.local_broker import LocalBroker
from contracts.broker import create_topics, events_to_end
from contracts.events import Release, Sample
from contracts.judges import is_judge
from contracts.settings import Kafka, Settings
from contracts.topics import RELEASES, SAMPLES
from learner import checkpoint
from learner.directory import PARTIAL_PREFIX
from learner.progress import Progress
from tests.learner.kill_plan import Death, Log, MakeSample, deaths, newest, tear
from tests.learner.lives import KILLED, SECONDS, Lives
from tests.rounds import given_seed, new_seed, rounds
from tests.topic_log import events, write
from tests.until import until

RECORDS = 16
"""New records before each life, a batch or two."""

SILENT_SHARE = 0.2
UNLEARNED = 48
"""More records than ever wait for a micro-batch to fill."""


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path / "own-broker") as running:
        create_topics(running.kafka)
        yield running


def _versions(settings: Settings) -> Path:
    return settings.state_dir / "versions" / settings.policy.name


def _checkpoints(settings: Settings) -> Path:
    return settings.state_dir / "checkpoints" / settings.policy.name


def _progress(settings: Settings) -> Progress:
    found = checkpoint.newest_progress(_checkpoints(settings))
    assert found is not None
    return found


def _states(settings: Settings) -> Path:
    return settings.state_dir / "states" / settings.policy.name


def _die(lives: Lives, death: Death, settings: Settings, broker: LocalBroker) -> None:
    """Live until the death that is planned, or until there is nothing more to do."""
    began = time.monotonic()
    lives.start(settings, death.suicide)
    if death.broker_restarts:
        broker.stop()
        broker.start()
    if death.seconds is not None:
        due = began + death.seconds
        until("the moment to die", lambda: time.monotonic() >= due or lives.ended() is not None)
    else:
        until(
            "a death, or the end of the log",
            lambda: lives.ended() is not None or lives.has_read_all(),
            SECONDS,
            state=lives.last_lines,
        )
    if lives.ended() is None:
        lives.kill()
    assert lives.ended() == KILLED, lives.last_lines()


def _tear_newest(rng: random.Random, settings: Settings) -> list[str]:
    """Cut what was written last: the newest checkpoint, and a version that no other knows of."""
    root = _checkpoints(settings)
    saved = sorted((p for p in root.glob("0*") if any(p.iterdir())), reverse=True)
    known = next(
        (versions for path in saved[1:] if (versions := _versions_in(path)) is not None), None
    )
    if known is None:
        return []
    roots = (_versions(settings), _states(settings))
    unknown = [p for root in roots for p in newest(root) if p.name not in known]
    return [tear(rng, path) for path in (saved[0], *unknown)]


def _versions_in(path: Path) -> dict[str, int] | None:
    """Return the versions that a checkpoint knows of, None when it is half removed or torn."""
    try:
        return checkpoint.read(path).versions
    except (OSError, ValueError):
        return None


def _partial(settings: Settings) -> list[str]:
    """Return what the death left unfinished."""
    roots = (_checkpoints(settings), _versions(settings), _states(settings))
    return [root.parent.name for root in roots for _ in root.glob(f"{PARTIAL_PREFIX}*")]


def _live_to_the_end(lives: Lives, settings: Settings, records: int) -> Progress:
    """Let a learner read all of the log and stop it."""
    lives.start(settings)
    until("the end of the log", lives.has_read_all, SECONDS, state=lives.last_lines)
    lives.stop()
    found = _progress(settings)
    assert found.next_offset > records - UNLEARNED, lives.last_lines()
    return found


def _files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _outcomes(settings: Settings, progress: Progress) -> list[tuple[str, str]]:
    """Return (sample id, outcome) of every line of every ledger, in order."""
    found = []
    for version in progress.versions:
        lines = (_versions(settings) / version / "ledger.jsonl").read_text().splitlines()
        found += [(line["sample_id"], line["outcome"]) for line in map(json.loads, lines)]
    return [*found, *((line.sample_id, line.outcome) for line in progress.ledger)]


def _different(found: Progress, wanted: Progress) -> list[str]:
    """Return what a learner that was killed came to otherwise than one that was not."""
    differences = []
    for name in Progress.__struct_fields__:
        mine, theirs = getattr(found, name), getattr(wanted, name)
        if mine == theirs:
            continue
        if isinstance(mine, tuple):
            pairs = zip_longest(mine, theirs)
            mine, theirs = next(pair for pair in pairs if pair[0] != pair[1])
        differences.append(f"{name}: {mine!s:.500}, not {theirs!s:.500}")
    return differences


def _allowed(sample: Sample, settings: Settings) -> set[str]:
    if sample.withdrawn:
        return {"withdrawn"}
    if sample.status == "censored":
        return {"no-reward", "superseded", *(["priced"] if sample.violation else [])}
    if is_judge(settings.policy.name, sample.user_id, settings.policy.judge_share):
        return {"judge"}
    return {"used", "stale", "log-ratio", *(["revised"] if sample.revision else [])}


def _wrong(kafka: Kafka, settings: Settings, progress: Progress) -> list[str]:
    """Return what the ledgers say otherwise than the log, as this test reads it."""
    samples: dict[str, Sample] = {}
    last: dict[str, str] = {}
    for record, event in events_to_end(kafka, (SAMPLES,), "test-reader"):
        if record.offset >= progress.next_offset or not isinstance(event, Sample):
            continue
        if event.assignment.policy == settings.policy.name and event.id not in samples:
            samples[event.id] = event
            last[event.decision_id] = event.id
    outcomes = _outcomes(settings, progress)
    times = Counter(sample_id for sample_id, _ in outcomes)
    wrong = [f"{one} stands {times[one]} times" for one in samples if times[one] != 1]
    wrong += [f"{one} was never sent" for one in times.keys() - samples.keys()]
    for sample_id, outcome in outcomes:
        sample = samples.get(sample_id)
        if sample is None:
            continue
        allowed = _allowed(sample, settings)
        if last[sample.decision_id] != sample_id and not sample.withdrawn:
            allowed |= {"superseded"}
        if outcome not in allowed:
            wrong.append(f"{sample_id} is {outcome}, not {sorted(allowed)}")
    return wrong


def test_a_learner_killed_at_any_moment_counts_each_sample_once_and_ends_bit_equal(
    settings: Settings, own_broker: LocalBroker, tmp_path: Path, make_sample: MakeSample
) -> None:
    seed, count = given_seed(), rounds(9)
    seed = new_seed() if seed is None else seed
    rng = random.Random(seed)
    kafka = own_broker.kafka
    killed = msgspec.structs.replace(settings, kafka=kafka)
    whole = msgspec.structs.replace(killed, state_dir=tmp_path / "whole")
    plan, log = deaths(rng, count), Log(rng, make_sample, silent_share=SILENT_SHARE)
    print(f"HEADRACE_TEST_SEED={seed} HEADRACE_TEST_ROUNDS={count}", flush=True)
    records, happened = 0, Counter[str]()
    with Lives(tmp_path / "learner.log") as lives:
        for number, death in enumerate(plan):
            released = dict.fromkeys(r.version for r in events(kafka, RELEASES, Release))
            pieces = log.draw(RECORDS, list(released))
            write(kafka, *pieces)
            records += len(pieces)
            _die(lives, death, killed, own_broker)
            left = _partial(killed)
            torn = _tear_newest(rng, killed) if death.torn else []
            happened += Counter({f"unfinished {name}": 1 for name in left})
            happened += Counter({"torn": len(torn), "broker restarts": death.broker_restarts})
            print(f"  {number}: {death}; left {left}, torn {torn}", flush=True)
        found = _live_to_the_end(lives, killed, records)
        wanted = _live_to_the_end(lives, whole, records)

    assert not (wrong := _wrong(kafka, killed, found)), f"seed {seed}\n" + "\n".join(wrong[:20])
    assert not (wrong := _different(found, wanted)), f"seed {seed}\n" + "\n".join(wrong)
    saved = f"{found.batches:09d}"
    assert _files(_checkpoints(killed) / saved) == _files(_checkpoints(whole) / saved), seed
    assert _files(_versions(killed)) == _files(_versions(whole)), seed
    assert _files(_states(killed)) == _files(_states(whole)), seed
    announced = {r.id: r.version for r in events(kafka, RELEASES, Release)}
    made = sorted(path.name for path in _versions(killed).iterdir())
    assert sorted(announced.values()) == made, seed
    outcomes = Counter(outcome for _, outcome in _outcomes(killed, found))
    assert made, "no version was compared"
    assert outcomes["used"], "no weight was learned by a rating"
    points = Counter(
        re.findall(r"^killed at ([\w-]+)", (tmp_path / "learner.log").read_text(), re.MULTILINE)
    )
    assert points, "no life ended where it was planned"
    print(
        f"{count} deaths, {records} records, {found.batches} batches, "
        f"{len(made)} versions, {dict(outcomes)}, {dict(happened)}, killed at {dict(points)}"
    )
