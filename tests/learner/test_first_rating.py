"""Until somebody rates who is no judge nothing can be learned, and no version has a ledger."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from contracts import tracing
from contracts.judges import is_judge
from contracts.settings import Settings
from learner.intake import Arrival, Intake
from learner.ledger import WITHDRAWN
from learner.progress import Beside, Progress, advance
from learner.telemetry import trace_samples
from learner.usable import Limits
from tests.learner.conftest import MakeSample
from tests.learner.lessons import rated, started

JUDGE = next(name for name in (f"j{n}" for n in range(99)) if is_judge("assistant", name, 0.2))
PERSON = next(name for name in (f"u{n}" for n in range(99)) if not is_judge("assistant", name, 0.2))


def test_batches_before_the_first_rating_leave_no_lines_that_pile_up(
    settings: Settings, make_sample: MakeSample
) -> None:
    train, progress = started(settings)
    for batch in range(3):
        first = 10 * batch
        judged = [rated(make_sample, first + n, user_id=JUDGE) for n in range(3)]
        back = rated(make_sample, first + 3, user_id=PERSON, withdrawn=True)
        silent = rated(make_sample, first + 4, user_id=PERSON, status="censored")
        beside = Beside(judged=judged, superseded=[(back, WITHDRAWN)], silent=[silent])
        progress = advance(train, progress, [], settings, beside)
        assert progress.ledger == ()
        assert progress.ledger_from == progress.next_offset == first + 5
    assert (progress.judged, progress.superseded, progress.unrewarded) == (9, 3, 3)
    assert len(progress.evaluation) == 9

    for first in (30, 40):
        beside = Beside(judged=[rated(make_sample, first, user_id=JUDGE)])
        fresh = [rated(make_sample, first + 1, user_id=PERSON)]
        progress = advance(train, progress, fresh, settings, beside)
    assert progress.ledger_from == 25
    assert [(line.offset, line.outcome) for line in progress.ledger] == [
        *((30, "judge"), (31, "used")),
        *((40, "judge"), (41, "used")),
    ]


def test_their_traces_say_what_became_of_them_all_the_same(
    settings: Settings, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("tests"))
    intake = Intake(settings, None, (), Limits(64, 48))
    judged, back, silent = (
        Arrival(rated(make_sample, n), {"traceparent": f"00-{n + 1:032x}-{n + 1:016x}-01"})
        for n in range(3)
    )
    intake.judged["judged"], intake.silent["silent"] = judged, silent
    intake.superseded.append((back, WITHDRAWN))
    trace_samples(Progress(policy="assistant", base="base", batches=1), intake)
    told = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    assert {span["headrace.sample.id"]: span["headrace.outcome"] for span in told} == {
        judged.experience.sample_id: "judge",
        back.experience.sample_id: "withdrawn",
        silent.experience.sample_id: "no-reward",
    }
