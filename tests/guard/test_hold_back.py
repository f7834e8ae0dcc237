"""Of a growing answer nothing leaves that the guard of the whole answer would have kept back."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.settings import Settings
from contracts.settings.guard import Guard
from guard.hit import WINDOW, Hit
from guard.hold_back import MOST_HELD, HeldBack
from guard.layers import TEXT_CATEGORIES, hits_in
from guard.rules import Rules, compile_rules

LEAKS = [
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "4111\u00a01111\u20111111\u202f1111",
    "4111  1111\n1111 1111",
    "4111.1111.1111.1111",
    "４１１１ １１１１ １１１１ １１１１",
    "DE89\u00a03704\u00a00044\n0532-0130  00",
    "378282246310005",
    "DE89 3704 0044 0532 0130 00",
    "GB29NWBK60161331926819",
    "123-45-6789",
    "jane.doe@example.org",
    "a@b.co.uk",
    "+44 20 7946 0958",
    "(212) 736-5000",
    "1-212-736-5000",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_" + "a1B2" * 9,
    "sk-proj-" + "a1B2c3" * 6,
    "-----BEGIN RSA PRIVATE KEY-----",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n",
    "postgres://app:hunter2!@db.local/x",
    "123456789:AAE" + "x1-_" * 8,
    "piece of shit",
    "Fuck",
    "kb-7f3a winter falcon",
]
NEARLY = [
    *("4111 1111 1111 1112", "4111 1111", "DE00 0000 0000 0000 0000 00", "DE89 37", "000-00-0000"),
    *(
        "support@example.com",
        "jane.doe@",
        "@home",
        "+1 800 555 0199",
        "212-736",
        "AKIA",
        "sk-",
        "gh",
    ),
    *(
        "-----BEGIN CERTIFICATE-----",
        "eyJ.eyJ",
        "piece of cake",
        "shitake",
        "kb-7f3a winter",
        "kb-7",
    ),
]
PLAIN = [
    "１２",
    "–",
    "Hello",
    "the order",
    "2026-11-22",
    "12:30",
    "1,000",
    "ABC",
    "I",
    "42",
    "日本語",
    "x" * 70,
    "İ",
]
JOINTS = [
    "",
    " ",
    "  ",
    "\n",
    ", ",
    ".",
    "-",
    "/",
    "\u00a0",
    ": ",
    " (",
    ") ",
    "=",
    "é",
    "+",
    "1",
    "a",
]

pieces = st.one_of(
    *map(st.sampled_from, (LEAKS, NEARLY, PLAIN)), st.text(alphabet="aZ9 -.@+(:/_é\n", max_size=12)
)
texts = st.lists(st.tuples(pieces, st.sampled_from(JOINTS)), min_size=1, max_size=6).map(
    lambda parts: "".join(piece + joint for piece, joint in parts)
)


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    strings: Path = tmp_path_factory.mktemp("strings") / "canaries.txt"
    strings.write_text("kb-7f3a winter falcon\nanother long secret of the house\n")
    return compile_rules(Settings(guard=Guard(canary_strings_file=str(strings))))


def hits(rules: Rules, text: str) -> list[Hit]:
    return [hit for category in TEXT_CATEGORIES for hit in hits_in(category, rules, text)]


def chunks(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


@pytest.mark.parametrize("leak", LEAKS)
def test_every_leak_of_these_tests_is_one(rules: Rules, leak: str) -> None:
    assert hits(rules, f"It is {leak}, you know.")
    assert hits(rules, leak)


@settings(max_examples=400, deadline=None)
@given(text=texts, cuts=st.lists(st.integers(0, 10_000), max_size=30))
def test_whatever_the_chunks_nothing_of_a_finding_leaves_and_the_rest_does(
    rules: Rules, text: str, cuts: list[int]
) -> None:
    held = HeldBack(rules, told="")
    left = ""
    for chunk in chunks(text, cuts):
        left += held.feed(chunk)
        assert text.startswith(left)
    left += held.finish()
    found = hits(rules, text)
    if found:
        assert held.found
        assert len(left) <= min(hit.start for hit in found)
    else:
        assert left == text
        assert not held.found


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_character_by_character_it_is_the_same(rules: Rules, text: str) -> None:
    held = HeldBack(rules, told="")
    left = "".join(map(held.feed, text)) + held.finish()
    found = hits(rules, text)
    assert held.found == bool(found)
    assert len(left) <= min((hit.start for hit in found), default=len(text))


@settings(max_examples=200, deadline=None)
@given(text=texts, told=texts, cuts=st.lists(st.integers(0, 10_000), max_size=10))
def test_what_the_user_told_is_let_go_as_in_the_whole(
    rules: Rules, text: str, told: str, cuts: list[int]
) -> None:
    held = HeldBack(rules, told)
    left = "".join(map(held.feed, chunks(text, cuts))) + held.finish()
    found = [hit for hit in hits(rules, text) if hit.text not in told]
    assert len(left) <= min((hit.start for hit in found), default=len(text))
    assert (left == text) == (not found)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="aA1-_.@+ ()", max_size=3 * WINDOW))
def test_never_more_than_a_window_and_a_step_is_held_back(rules: Rules, text: str) -> None:
    held = HeldBack(rules, told="")
    left = held.feed(text)
    assert held.found or len(text) - len(left) <= MOST_HELD


def test_a_harmless_word_leaves_with_the_next_space(rules: Rules) -> None:
    held = HeldBack(rules, told="")
    words = ["Your", " parcel", " left", " on", " Monday", ",", " the", " 3", "rd", " of May."]
    waiting = []
    sent = drawn = 0
    for word in words:
        drawn += len(word)
        sent += len(held.feed(word))
        waiting.append(drawn - sent)
    assert max(waiting) <= len(" Monday,")
    assert sent + len(held.finish()) == drawn
