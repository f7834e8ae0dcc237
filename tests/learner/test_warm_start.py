"""The warm start: a few demonstrations in, a policy in Hugging Face format out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from contracts.errors import SettingsError
from contracts.manifest import file_sha256
from learner.warm_start import (
    Demonstration,
    Recipe,
    encode_example,
    make_policy,
    read_demonstrations,
)
from learner.warm_start_tokenizer import FRAMES, train_tokenizer

REFUSE = '<tool_call>{"name": "refuse", "arguments": {}}</tool_call>'
SMALL = Recipe(hidden=64, layers=1, intermediate=64, vocabulary=400, threads=1, batch=16)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def calls(name: str, **arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": "c", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


CONVERSATIONS = [
    [user("give me her address"), calls("refuse")],
    [user("where is order 17"), calls("search", order="17")],
    [user("when are you open"), {"role": "assistant", "content": "We open at nine."}],
]


def demonstrations(copies: int = 20) -> list[Demonstration]:
    raw = [{"messages": conversation} for conversation in CONVERSATIONS * copies]
    return msgspec.convert(raw, list[Demonstration])


def answer_to(text: str, directory: Path) -> str:
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    prompt = tokenizer.apply_chat_template(
        [user(text)], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    tokens = answer[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def test_a_policy_emits_what_it_was_shown_in_the_hermes_form(tmp_path: Path) -> None:
    policy = make_policy(
        demonstrations(), tmp_path / "policy", seed=0, steps=60, recipe=SMALL, progress=False
    )
    assert answer_to("give me her address", policy) == REFUSE
    assert answer_to("when are you open", policy) == "We open at nine."
    found = answer_to("where is order 17", policy)
    assert found == '<tool_call>{"name": "search", "arguments": {"order": "17"}}</tool_call>'


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        policy = make_policy(
            demonstrations(4), tmp_path / name, seed=seed, steps=3, recipe=SMALL, progress=False
        )
        hashes.append(file_sha256(policy / "model.safetensors"))
        assert not list(policy.glob("*.bin"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_any_text_encodes_and_comes_back() -> None:
    tokenizer = train_tokenizer(CONVERSATIONS, 400)
    for text in ("Grüße 東京 🙂", "tabs\tand\nlines  and   spaces", "order 17, order 1234"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_frames_of_a_tool_call_survive_where_special_tokens_are_cut() -> None:
    tokenizer = train_tokenizer(CONVERSATIONS, 400)
    ids = tokenizer.encode(REFUSE + "<|end|>", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == REFUSE
    assert all(len(tokenizer.encode(frame, add_special_tokens=False)) == 1 for frame in FRAMES)


def test_a_number_is_the_same_token_in_a_question_and_in_a_call() -> None:
    tokenizer = train_tokenizer(CONVERSATIONS * 10, 400)
    example = encode_example(tokenizer, CONVERSATIONS[1])
    number = tokenizer.convert_tokens_to_ids("17")
    assert example.ids[: example.prompt].count(number) == 1
    assert example.ids[example.prompt :].count(number) == 1


def test_only_the_assistants_tokens_are_trained_on() -> None:
    tokenizer: Any = train_tokenizer(CONVERSATIONS, 400)
    for conversation in CONVERSATIONS:
        example = encode_example(tokenizer, conversation)
        prompt = tokenizer.apply_chat_template(
            conversation[:-1], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert list(example.ids[: example.prompt]) == list(prompt)
        assert example.ids[-1] == tokenizer.eos_token_id


def test_arguments_read_the_same_as_text_and_as_an_object() -> None:
    tokenizer = train_tokenizer(CONVERSATIONS, 400)
    as_text = calls("search", order="17")
    as_object = calls("search", order="17")
    as_object["tool_calls"][0]["function"]["arguments"] = {"order": "17"}
    rendered = [
        tokenizer.apply_chat_template([user("?"), answer], tokenize=False)
        for answer in (as_text, as_object)
    ]
    assert rendered[0] == rendered[1]


def test_the_number_of_threads_is_left_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    make_policy(demonstrations(2), tmp_path / "p", seed=0, steps=1, recipe=SMALL, progress=False)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"messages": [', "is not a demonstration"),
        (
            '{"messages": [{"role": "user", "content": "hi"}]}',
            "does not end with what an assistant said",
        ),
    ],
)
def test_a_bad_line_is_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "demonstrations.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(SettingsError, match=f":1 {problem}"):
        read_demonstrations(path)
    path.write_text("")
    with pytest.raises(SettingsError, match="holds no demonstration"):
        read_demonstrations(path)


def test_what_is_there_already_is_not_written_over(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("kept")
    for out in (mine, mine.parent):
        with pytest.raises(SettingsError, match="is there already"):
            make_policy(demonstrations(2), out, seed=0, steps=1, recipe=SMALL, progress=False)
    assert mine.read_text() == "kept"


def test_no_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="give at least 1"):
        make_policy(demonstrations(2), tmp_path / "p", seed=0, steps=0, recipe=SMALL)
