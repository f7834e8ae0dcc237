"""Whatever is fed to the guard, the work grows with the length of the text, not with its square."""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import process_time

import pytest

from contracts.settings import Settings
from contracts.tool_calls import ToolCallScanner
from guard.arguments import as_decoded
from guard.hold_back import HeldBack
from guard.layers import TEXT_CATEGORIES, Asked, check_question, hits_in
from guard.rules import Rules, compile_rules

SEVERAL, MOST = 4, 8.0
"""Times as long a text, and times as much CPU allowed: linear gives 4, quadratic 16."""
RULES = compile_rules(Settings())

NASTY = [
    "(",
    "+",
    "+1",
    "( ",
    "1 ",
    "4",
    "DE12 ",
    "A",
    "AA11",
    "a@",
    "a.",
    "://",
    "-----BEGIN ",
    "-",
]


def growth(work: Callable[[str], object], unit: str, characters: int) -> float:
    """Return how many times as much CPU a text takes that is SEVERAL times as long."""

    def least(text: str) -> float:
        taken = []
        for _ in range(2):
            gc.collect()
            before = process_time()
            work(text)
            taken.append(process_time() - before)
        return min(taken)

    short = unit * (characters // len(unit))
    return least(short * SEVERAL) / max(least(short), 1e-4)


def found_in_the_whole(rules: Rules, text: str) -> None:
    for category in TEXT_CATEGORIES:
        list(hits_in(category, rules, text))


@pytest.mark.parametrize("unit", NASTY)
def test_the_whole_answer_takes_time_by_its_length(unit: str) -> None:
    assert growth(lambda text: found_in_the_whole(RULES, text), unit, 5_000) < MOST


@pytest.mark.parametrize(
    "unit", ["\\u0041", "\\u0041 ", "\\", '"', '\\"', "1", "1.", "1e", "[", '"1.0']
)
def test_arguments_are_read_in_time_by_their_length(unit: str) -> None:
    assert growth(as_decoded, unit, 50_000) < MOST


@pytest.mark.parametrize("unit", ["(", "+1 ", "DE12 ", "a"])
def test_a_stream_takes_time_by_its_length(unit: str) -> None:
    def streamed(text: str) -> None:
        held = HeldBack(RULES, told="")
        for character in text:
            held.feed(character)
        held.finish()

    assert growth(streamed, unit, 1_500) < MOST


@pytest.mark.parametrize("unit", ["ignore ", "a", "you no ", "you without a ", "reveal ", "ignora"])
def test_a_question_takes_time_by_its_length(unit: str) -> None:
    def asked(text: str) -> None:
        check_question(RULES, Asked(text, len(text), text))

    assert growth(asked, unit, 5_000) < MOST


@pytest.mark.parametrize("before", ["", "\n"])
@pytest.mark.parametrize("unit", ["<tool_call>", "{", "<"])
def test_an_open_call_takes_time_by_its_length(unit: str, before: str) -> None:
    def scanned(text: str) -> None:
        scanner = ToolCallScanner(("pay",), "x")
        for character in before + "<tool_call>" + text:
            scanner.feed(character)
        scanner.finish()

    assert growth(scanned, unit, 10_000) < MOST


def test_white_space_takes_time_by_its_length() -> None:
    def scanned(text: str) -> None:
        scanner = ToolCallScanner(("pay",), "x")
        for character in text:
            scanner.feed(character)

    assert growth(scanned, " ", 20_000) < MOST
