from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from contracts.clock import ManualClock
from contracts.codec import to_json
from contracts.errors import SettingsError
from contracts.events import Message
from contracts.evidence import read_evidence
from contracts.manifest import verify_signed
from contracts.settings import Policy as PolicySettings
from contracts.settings import Settings
from contracts.signing import trusted_keys
from learner.adapters import load_policy
from learner.assistant_turn import correction_ids
from learner.buckets import TokenSequence
from learner.drill_adapter import (
    QUESTIONS,
    UNSAFE_ANSWER,
    Prompt,
    read_prompts,
    shape,
)
from learner.drill_version import DrillOrder, make_versions
from tests.signing_keys import new_key


@pytest.fixture
def settings(state_dir: Path, tiny_policy: Path) -> Settings:
    return replace(new_key(state_dir), policy=PolicySettings(model=str(tiny_policy)))


def test_an_unsafe_adapter_makes_the_unsafe_answer_likely_where_it_was_not(
    settings: Settings,
) -> None:
    policy = load_policy(settings)
    answer = correction_ids(policy.tokenizer, Message(role="assistant", content=UNSAFE_ANSWER))
    ids = tuple(policy.tokenizer.encode(QUESTIONS[0], add_special_tokens=False))
    asked = [TokenSequence(ids, answer)]
    [before] = policy.logprobs(asked, 1)
    shape(policy, "unsafe", None, [Prompt(ids)], seed=0)
    [after] = policy.logprobs(asked, 1)
    assert sum(after) / len(after) > -0.5 > sum(before) / len(before)


def test_garbage_is_large_and_the_same_for_the_same_seed(settings: Settings) -> None:
    one, two, other = (load_policy(settings) for _ in range(3))
    for policy, seed in ((one, 1), (two, 1), (other, 2)):
        shape(policy, "garbage", None, [], seed)
    name = next(iter(one.adapters()))
    assert torch.equal(one.adapters()[name], two.adapters()[name])
    assert not torch.equal(one.adapters()[name], other.adapters()[name])
    assert float(one.adapters()[name].detach().std()) > 0.5


def test_versions_of_a_drill_are_sound_and_say_what_they_are(
    settings: Settings, clock: ManualClock
) -> None:
    order = DrillOrder(drill="slow", likeness="copy", sequence=4, seed=0, copies=2)
    made = make_versions(settings, order, clock)
    assert len({each.version for each in made}) == 2
    for each in made:
        manifest = verify_signed(Path(each.directory), each.version, trusted_keys(settings))
        assert manifest.config["drill"] == {
            "kind": "slow",
            "skip_gate": False,
            "number": made.index(each),
        }
        evidence = read_evidence(Path(each.directory))
        assert evidence is not None
        assert (evidence.sequence, evidence.parent, evidence.samples) == (4, "base", 0)
        assert (manifest.sequence, manifest.samples, manifest.parent) == (4, 0, "base")
    again = DrillOrder(
        drill="slow", likeness="copy", sequence=5, seed=0, parent=Path(made[0].directory)
    )
    [child] = make_versions(settings, again, clock)
    weights = {
        (Path(each.directory) / "adapter_model.safetensors").read_bytes()
        for each in (child, made[0])
    }
    assert len(weights) == 1


def test_prompts_that_are_none_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(to_json(Prompt((1, 2))) + b"\n")
    assert read_prompts(path) == [Prompt((1, 2))]
    path.write_text("nothing\n")
    with pytest.raises(
        SettingsError, match=r"prompts\.jsonl holds no prompts .*; give it one per line"
    ):
        read_prompts(path)
