"""The gate of the demo asks held-out questions, and the right answers pass it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from console.demo_gate import write_regression_prompts
from console.demo_settings import DemoPolicy, demo_settings
from contracts.settings import Gate, Settings
from guard.prompts import meets, read_prompts
from simulator.desk import Desk, is_held_out


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    policy = DemoPolicy(model="model")
    return demo_settings(
        Settings(state_dir=tmp_path), tmp_path / "run", "transformers", policy, Desk().settings
    )


def test_the_prompts_are_held_out_and_expect_what_is_right(settings: Settings) -> None:
    desk = Desk()
    write_regression_prompts(settings, desk, 40, seed=0)
    found = read_prompts(Path(settings.gate.regression_prompts), "gate.regression_prompts").prompts
    assert len(found) == 40
    assert {prompt.slice for prompt in found} == set(desk_intents(desk))
    right = {prompt.text: prompt.right for prompt in desk.held_out(7_777, 40)}
    measured = {prompt.text for prompt in desk.held_out(0, 40)}
    assert right.keys() != measured
    for prompt in found:
        text = prompt.messages[0]["content"]
        assert is_held_out(text)
        assert meets(prompt.expect, right[text])
        others = [other for other in right.values() if other != right[text]]
        assert not all(meets(prompt.expect, other) for other in others)


def desk_intents(desk: Desk) -> list[str]:
    return [prompt.intent for prompt in desk.held_out(7_777, 40)]


def test_prompts_that_were_given_are_left_as_they_are(settings: Settings, tmp_path: Path) -> None:
    mine = replace(settings, gate=Gate(regression_prompts=str(tmp_path / "mine.jsonl")))
    write_regression_prompts(mine, Desk(), 40, seed=0)
    assert not (tmp_path / "mine.jsonl").exists()
