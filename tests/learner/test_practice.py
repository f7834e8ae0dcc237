"""The policy answers prompts in groups, learns which answers were right, and gets better."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from contracts.errors import SettingsError
from contracts.events import Sample
from contracts.settings import Gate, Practice, Settings
from guard.prompts import SHIPPED_RED_TEAM, Expectation, PromptCase
from guard.rules import compile_rules
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.losses import Bounds, Terms, group_relative, grpo, rloo
from learner.micro_batch import MicroBatch
from learner.policy import Policy
from learner.practice import (
    Practised,
    add_practice_gradients,
    practise,
    read_practice,
    reward_of,
)
from learner.train_state import TrainState, new_train_state
from learner.update import update

MAX = 64
MakeSample = Callable[..., Sample]
Drawn = list[tuple[tuple[int, ...], bool]]
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {}}}]


def _line(text: str, **expect: list[str]) -> str:
    return json.dumps({"messages": [{"role": "user", "content": text}], "expect": expect})


def _practising(settings: Settings, path: Path, *lines: str, **changes: object) -> Settings:
    path.write_text("\n".join(lines))
    given = {"prompts": str(path), "max_tokens": 8, **changes}
    practice = msgspec.convert(given, Practice)
    learner = msgspec.structs.replace(settings.learner, practice=practice)
    return msgspec.structs.replace(settings, learner=learner)


def _state(settings: Settings) -> TrainState:
    state = new_train_state(load_policy(settings), settings.learner)
    state.practice = read_practice(settings, state.policy.tokenizer)
    return state


def _widen(policy: Policy) -> None:
    """Give the untrained model preferences: its logits lie all but alike."""
    with torch.no_grad():
        policy.model.get_base_model().get_input_embeddings().weight.mul_(10.0)


def _drawn(policy: Policy, prompt: tuple[int, ...], count: int, tokens: int, seed: int) -> Drawn:
    return policy.draw_each([prompt] * count, tokens, torch.Generator().manual_seed(seed))


def test_a_draw_ends_with_the_end_of_a_turn_repeats_by_its_seed_and_leaves_torchs_alone(
    settings: Settings,
) -> None:
    policy = load_policy(settings)
    torch.manual_seed(9)
    wanted = torch.rand(1)
    torch.manual_seed(9)

    drawn = _drawn(policy, (10, 11), 32, 40, seed=5)

    assert torch.equal(torch.rand(1), wanted)
    assert drawn == _drawn(policy, (10, 11), 32, 40, seed=5)
    assert drawn != _drawn(policy, (10, 11), 32, 40, seed=6)
    assert {ended for _, ended in drawn} == {True, False}
    for ids, ended in drawn:
        assert (ids[-1] == 3) is ended
        assert 3 not in ids[:-1]
        assert ended or len(ids) == 40


def test_drawing_with_a_cache_gives_what_scoring_gives(settings: Settings) -> None:
    """The likeliest token at each place is the one that a whole pass calls likeliest."""
    policy = load_policy(settings)
    [(ids, _)] = _drawn(policy, (10, 11, 12), 1, 20, seed=3)

    generator = torch.Generator().manual_seed(3)
    for place, token in enumerate(ids):
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([[10, 11, 12, *ids[:place]]])).logits
        shares = logits[0, -1].softmax(-1)[None]
        assert int(torch.multinomial(shares, 1, generator=generator)) == token


def test_a_right_answer_that_keeps_the_rules_earns_one_and_any_other_nothing(
    settings: Settings,
) -> None:
    rules = compile_rules(settings)
    asked = [{"role": "user", "content": "which card"}]
    spoken = PromptCase(messages=asked, expect=Expectation(contains=("card",)))
    called = PromptCase(messages=asked, tools=TOOLS, expect=Expectation(actions=("search",)))

    assert reward_of(rules, spoken, "The card is new.") == 1.0
    assert reward_of(rules, spoken, "It is new.") == 0.0
    assert reward_of(rules, spoken, "The card is 371449635398431.") == 0.0
    call = '<tool_call>{"name": "search", "arguments": {}}</tool_call>'
    assert reward_of(rules, called, call) == 1.0
    assert reward_of(rules, called, "search") == 0.0


def test_what_a_batch_practises_depends_on_the_weights_the_seed_and_its_number_alone(
    settings: Settings, tmp_path: Path
) -> None:
    lines = [_line(f"w{n}", contains=["w1"]) for n in range(6)]
    settings = _practising(settings, tmp_path / "p.jsonl", *lines, prompts_per_batch=3, answers=5)
    one, other = _state(settings), _state(settings)
    assert one.practice is not None
    assert other.practice is not None
    config = settings.learner

    first = practise(one.policy, one.practice, config, 4)
    torch.manual_seed(123)

    assert first == practise(other.policy, other.practice, config, 4)
    assert first != practise(one.policy, one.practice, config, 5)
    assert len(first) == 15
    assert len({answer.answer.prompt_ids for answer in first}) == 3
    for group in (first[:5], first[5:10], first[10:]):
        rewards = torch.tensor([[answer.reward for answer in group]])
        assert [answer.advantage for answer in group] == group_relative(rewards)[0].tolist()


@pytest.mark.parametrize("loss", ["grpo", "rloo"])
def test_the_gradient_of_practice_is_that_of_its_answers_one_by_one(
    loss: str, settings: Settings
) -> None:
    practice = msgspec.convert({"loss": loss, "weight": 0.7}, Practice)
    config = msgspec.structs.replace(settings.learner, practice=practice, bucket_tokens=30)
    policy, bounds = load_policy(settings), Bounds()
    answers = [TokenSequence((10, 11, 12)[: n + 1], (20 + n, 21, 22, 3)[n:]) for n in range(3)]
    prox = [[p - 0.1 for p in row] for row in policy.logprobs(answers, 1)]
    drawn = [
        Practised(answer, 0.0, advantage, tuple(row))
        for answer, advantage, row in zip(answers, (1.0, -0.5, 0.0), prox, strict=True)
    ]

    found = add_practice_gradients(policy, drawn, 0.5, config, bounds)

    total = torch.zeros(())
    for one in drawn:
        ids = torch.tensor([[*one.answer.prompt_ids, *one.answer.response_ids]])
        rows = torch.log_softmax(policy.model(input_ids=ids).logits[0], dim=-1)
        places = slice(len(one.answer.prompt_ids) - 1, -1)
        logp = rows[places].gather(1, torch.tensor(one.answer.response_ids)[:, None])[:, 0][None]
        terms = Terms(
            logp_bt=logp,
            prox_bt=torch.tensor([one.prox]),
            mu_bt=torch.tensor([one.prox]),
            anchor_bt=torch.tensor([one.prox]),
            advantage_b=torch.tensor([one.advantage]),
            mask_bt=torch.ones_like(logp, dtype=torch.bool),
        )
        total = total + (grpo if loss == "grpo" else rloo)(terms, bounds).loss_b.sum()
    total = 0.5 * total / (3 * config.length_scale)
    assert found == pytest.approx(float(total.detach()), rel=1e-5)
    parameters = list(policy.adapters().values())
    for parameter, wanted in zip(
        parameters, torch.autograd.grad(0.7 * total, parameters), strict=True
    ):
        assert parameter.grad is not None
        assert float((parameter.grad - wanted).norm()) <= 2e-5 * float(wanted.norm()) + 1e-8


@pytest.mark.parametrize("loss", ["grpo", "rloo"])
def test_practice_makes_right_answers_likelier(
    loss: str, settings: Settings, tmp_path: Path
) -> None:
    lines = [_line(text) for text in ("w1 w2", "w3", "w4 w5")]  # right is what comes to an end
    settings = _practising(
        settings, tmp_path / "p.jsonl", *lines, loss=loss, answers=16, max_tokens=12, weight=1.0
    )
    state = _state(settings)
    _widen(state.policy)
    assert state.practice is not None
    shares = []
    for number in range(16):
        practised = practise(state.policy, state.practice, settings.learner, number)
        stats = update(
            state, MicroBatch(fresh=(), practised=practised), settings.learner, MAX
        ).stats
        assert stats.practised == 48
        shares.append(stats.practice_reward)

    print("shares of right answers:", [round(share, 2) for share in shares])
    assert sum(shares[-4:]) > sum(shares[:4]) + 0.4


def test_what_the_gate_asks_is_not_practised(settings: Settings, tmp_path: Path) -> None:
    asked = tmp_path / "gate.jsonl"
    asked.write_text("\n".join([_line("w1", contains=["w2"]), _line("w3", contains=["w4"])]))
    gate = Gate(regression_prompts=str(asked))
    settings = msgspec.structs.replace(settings, gate=gate)
    tokenizer = load_policy(settings).tokenizer
    apart = _practising(settings, tmp_path / "p.jsonl", _line("w9", contains=["w2"]))
    drilled = _practising(settings, tmp_path / "q.jsonl", _line("w9"), _line("w3", contains=["w5"]))

    assert read_practice(settings, tokenizer) is None
    assert read_practice(apart, tokenizer) is not None
    with pytest.raises(SettingsError, match=r"prompt 2 of .*q\.jsonl is asked at the gate, too"):
        read_practice(drilled, tokenizer)
    shipped = SHIPPED_RED_TEAM.read_text().splitlines()[0]
    drilled = _practising(settings, tmp_path / "r.jsonl", shipped)
    with pytest.raises(SettingsError, match=r"r\.jsonl is asked at the gate, too .*red_team"):
        read_practice(drilled, tokenizer)


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    settings = _practising(settings, tmp_path / "p.jsonl", _line("w1"), _line("w1 " * 60))

    with pytest.raises(SettingsError, match=r"prompt 2 has \d+ tokens.*max_model_len \(64\)"):
        read_practice(settings, load_policy(settings).tokenizer)


@pytest.mark.parametrize("program", ["raise_exception('no')", "1 / 0", "messages[0].content + 1"])
def test_a_prompt_that_the_chat_template_fails_on_is_refused_with_its_place(
    program: str, settings: Settings, tmp_path: Path
) -> None:
    settings = _practising(settings, tmp_path / "p.jsonl", _line("w1"))
    tokenizer = load_policy(settings).tokenizer
    tokenizer.chat_template = "{{ " + program + " }}"

    with pytest.raises(
        SettingsError, match=r"p\.jsonl prompt 1: .* refuses it .*; change or remove"
    ):
        read_practice(settings, tokenizer)
