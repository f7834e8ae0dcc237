"""A model on the same engine judges questions beside the rules, within a deadline of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from contracts import settings as s
from contracts.errors import SettingsError
from contracts.events import GuardReport
from contracts.settings import load_settings
from contracts.settings.guard import Guard, GuardLayers, GuardModel, Mode
from serving.engine import EngineAnswer, EngineRequest
from serving.http_engine import HttpEngine
from tests.serving.http_server import Server
from tests.serving.rollout_states import canary_state
from tests.serving.scripted_gateway import ScriptedEngine, ScriptedGateway

HARMFUL, HARMLESS = "hello", "count"
"""Questions that the tiny model answers with its yes, and with something else."""


class JudgedEngine(ScriptedEngine):
    """A scripted engine on which "judge" is the tiny model of another one."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.judge = HttpEngine(url, 20.0)

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        if request.model != "judge" or self.faults.get("judge"):
            return await super().complete(request)
        return await self.judge.complete(msgspec.structs.replace(request, model="base"))

    async def close(self) -> None:
        await self.judge.close()
        await super().close()


def _guard(mode: Mode = "enforce") -> Guard:
    return Guard(
        layers=GuardLayers(guard_model=mode),
        model=GuardModel(name="judge", prompt="{question}", yes="gr", timeout_seconds=10.0),
    )


def _open(folder: Path, engine: Server, guard: Guard) -> ScriptedGateway:
    return ScriptedGateway(folder, canary_state(0.25), JudgedEngine(engine.url), guard=guard)


@pytest.fixture
async def gateway(tmp_path: Path, tiny_engine: Server) -> AsyncIterator[ScriptedGateway]:
    made = _open(tmp_path, tiny_engine, _guard())
    yield made
    await made.close()


async def _report(gateway: ScriptedGateway, text: str) -> GuardReport:
    answer = await gateway.ask(messages=[{"role": "user", "content": text}])
    assert answer.status_code == 200
    report = gateway.decisions()[-1].guard
    assert report is not None
    return report


async def test_a_question_that_the_model_calls_harmful_reaches_no_version(
    gateway: ScriptedGateway,
) -> None:
    report = await _report(gateway, HARMFUL)
    assert (report.action, report.where) == ("blocked", "question")
    assert [(f.category, f.rule) for f in report.findings] == [("guard-model", "judge")]
    assert report.layer_seconds["guard-model"] > 0.0
    assert gateway.engine.asked == {}


async def test_a_question_that_it_lets_pass_is_answered(gateway: ScriptedGateway) -> None:
    assert (await _report(gateway, HARMLESS)).action == "passed"
    assert gateway.engine.asked.total() == 1


@pytest.mark.parametrize("fault", ["fail", "hang"])
async def test_a_model_that_fails_or_is_late_stops_nobody(
    tmp_path: Path, tiny_engine: Server, fault: str
) -> None:
    late = msgspec.structs.replace(
        _guard(), model=msgspec.structs.replace(_guard().model, timeout_seconds=0.1)
    )
    gateway = _open(tmp_path, tiny_engine, late)
    gateway.engine.faults = {"judge": fault}
    assert (await _report(gateway, HARMFUL)).action == "passed"
    metrics = (await gateway.client.get("/metrics")).text
    assert "headrace_guard_model_failed_total 1" in metrics
    await gateway.close()


async def test_an_observing_model_only_reports(tmp_path: Path, tiny_engine: Server) -> None:
    gateway = _open(tmp_path, tiny_engine, _guard("observe"))
    report = await _report(gateway, HARMFUL)
    assert (report.action, len(report.findings)) == ("passed", 1)
    await gateway.close()


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("GUARD__LAYERS", '{"guard_model":"enforce"}', "guard.layers.guard_model"),
        ("GUARD__MODEL", '{"name":"judge","prompt":"Is it bad?"}', "guard.model.prompt"),
    ],
)
def test_a_model_that_could_not_judge_is_refused_in_the_settings(
    name: str, value: str, place: str
) -> None:
    with pytest.raises(SettingsError, match=place):
        load_settings(environment={f"HEADRACE_{name}": value})
    assert s.Settings().guard.model.name == ""
