"""Which link of a decision lacks, and whether the audit chains are sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from console.evidence import (
    Evidence,
    Learned,
    SpanLine,
    all_evidence,
    manifests,
    version_directories,
)
from console.explain import explain_decision, explanation
from console.traceability import SPANS, STEPS, is_traceable, traceability, traceability_text
from contracts.audit import AuditChain
from contracts.clock import ManualClock
from contracts.events import (
    AuditRecord,
    Event,
    Feedback,
    Reward,
    Safety,
    Sample,
)
from contracts.ids import NewId
from contracts.settings import Kafka, Settings
from tests.console.story import LATER, Story, tell


def test_all_decisions_are_checked_and_what_lacks_is_named(
    kafka: Kafka, state_dir: Path, story: Story
) -> None:
    evidence = all_evidence(kafka, Settings(state_dir=state_dir))
    assert explanation(evidence, story.decision.id) == explain_decision(
        kafka, Settings(state_dir=state_dir), story.decision.id
    )
    found = traceability(evidence)
    assert (found.decisions, found.explained, is_traceable(found)) == (2, 0, False)
    assert story.decision.id in found.lacking["audit of every step"]
    assert story.decision.id not in found.lacking["policy version"]
    assert found.lacking["safety features"] == found.lacking["reward"] == ()
    assert (found.samples, found.learned, found.audit_chains) == (2, 1, 2)
    assert f"{story.decision.id}" in traceability_text(found)


@pytest.fixture
def whole(state_dir: Path, new_id: NewId) -> Evidence:
    """All that there is on one decision of which nothing lacks."""
    told = tell(state_dir / "versions", new_id)
    chain = AuditChain("streams-1", ManualClock(LATER), new_id)
    steps = [chain.record(action, told.decision.id) for action in sorted(STEPS)]
    about = [event for _, event in told.events if not isinstance(event, AuditRecord)] + steps
    (sample,) = (event for event in about if isinstance(event, Sample))
    line = {"sample_id": sample.id, "outcome": "used"}
    learned = Learned(version=told.version, sequence=2, phase="promoted", outcome=line)
    names = [("gateway", "chat assistant"), ("learner", "learn")]
    names += [("streams-1", name) for name in SPANS]
    spans = [
        SpanLine(process=p, name=name, start="", seconds=0.1, span_id="1", parent_id=None)
        for p, name in names
    ]
    return Evidence(
        versions=manifests(version_directories(state_dir / "versions")),
        about={told.decision.id: about},
        offsets={sample.id: 63},
        learned={sample.id: [learned]},
        paid={},
        spans={"ab" * 16: spans},
    )


def without(evidence: Evidence, unwanted: Callable[[Event], bool]) -> Evidence:
    about = {
        key: [event for event in events if not unwanted(event)]
        for key, events in evidence.about.items()
    }
    return replace(evidence, about=about)


def test_a_decision_of_which_nothing_lacks_is_traceable(whole: Evidence) -> None:
    found = traceability(whole)
    assert is_traceable(found)
    assert (found.explained, found.traced, found.cut) == (1, 1, 0)
    assert set(found.lacking.values()) == {()}


@pytest.mark.parametrize(
    ("link", "harm"),
    [
        ("policy version", lambda e: replace(e, versions={})),
        ("safety features", lambda e: without(e, lambda event: isinstance(event, Safety))),
        ("reward", lambda e: without(e, lambda event: isinstance(event, Reward))),
        ("events behind the reward", lambda e: without(e, lambda x: isinstance(x, Feedback))),
        *(
            (
                "audit of every step",
                lambda e, step=step: without(e, lambda x: getattr(x, "action", "") == step),
            )
            for step in sorted(STEPS)
        ),
        ("version that learned it", lambda e: replace(e, learned={})),
    ],
)
def test_the_link_that_lacks_is_named(
    whole: Evidence, link: str, harm: Callable[[Evidence], Evidence]
) -> None:
    found = traceability(harm(whole))
    assert not is_traceable(found)
    assert {name for name, ids in found.lacking.items() if ids} == {link}


@pytest.mark.parametrize("lost", [*SPANS, "chat assistant", "learn"])
def test_a_lost_span_is_counted_and_breaks_nothing(whole: Evidence, lost: str) -> None:
    spans = {key: [s for s in lines if s.name != lost] for key, lines in whole.spans.items()}
    found = traceability(replace(whole, spans=spans))
    assert is_traceable(found)
    assert found.traced == 0


def test_a_sample_that_no_version_has_come_to_yet_lacks_nothing(whole: Evidence) -> None:
    newest = replace(whole, learned={}, offsets=dict.fromkeys(whole.offsets, 64), spans={})
    assert is_traceable(traceability(newest))


def test_an_empty_log_is_not_called_traceable() -> None:
    nothing = Evidence(versions={}, about={}, offsets={}, learned={}, paid={}, spans={})
    assert not is_traceable(traceability(nothing))


def test_a_chain_with_a_changed_record_is_broken_one_without_its_head_is_cut(
    whole: Evidence,
) -> None:
    (decision_id,) = whole.about
    first, *others = (e for e in whole.about[decision_id] if isinstance(e, AuditRecord))
    changed = replace(whole, about={"x": [replace(first, reason="?"), *others]})
    assert traceability(changed).broken
    missing = replace(whole, about={"x": [first, *others[1:]]})
    assert traceability(missing).broken
    expired = traceability(replace(whole, about={"x": others}))
    assert (expired.broken, expired.cut) == ((), 1)
