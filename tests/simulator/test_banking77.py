"""Real questions, split so that what is measured was never demonstrated or asked."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import msgspec
import pytest

from contracts.errors import SettingsError, UnavailableError
from contracts.settings import Settings
from simulator.banking77 import Banking77
from simulator.desk import Desk
from simulator.product import call, make_product, say


def test_no_question_is_in_two_parts_of_the_split(bank: Banking77) -> None:
    parts = [{text.lower() for text, _ in p} for p in (bank.demonstrated, bank.asked, bank.unseen)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert min(map(len, parts)) >= 1000
    assert len(bank.topics) == 77


def test_live_questions_come_from_their_part_alone(bank: Banking77) -> None:
    asked = {text for text, _ in bank.asked}
    live = list(islice(bank.live(1), 500))
    assert {prompt.text for prompt in live} <= asked
    assert live == list(islice(bank.live(1), 500))
    assert not asked & {prompt.text for prompt in bank.held_out(1, 500)}


def test_only_the_topic_of_the_question_is_right(bank: Banking77) -> None:
    prompt = bank.held_out(0, 1)[0]
    other = next(topic for topic in bank.topics if topic != prompt.intent)
    assert bank.judge(prompt, prompt.right).utility == 1.0
    assert bank.judge(prompt, call("help_topic", topic=other)).utility == -0.5
    assert bank.judge(prompt, call("help_topic", topic="no such topic")).utility == -1.0
    assert bank.judge(prompt, call("escalate")).utility == -0.2
    assert bank.judge(prompt, say("card_arrival")).utility == -1.0
    assert not bank.judge(prompt, prompt.right).violation


def test_the_settings_of_both_products_are_settings_of_the_platform(
    bank: Banking77, desk: Desk
) -> None:
    for product in (bank, desk):
        settings = msgspec.convert(dict(product.settings), Settings)
        assert settings.learner.lora_rank <= settings.engine.max_lora_rank
        assert (
            settings.streams.reward["safety"].weight >= 2 * settings.streams.reward["rating"].weight
        )


def test_missing_data_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="get BANKING77 from"):
        Banking77(tmp_path)


def test_unknown_users_are_refused_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="choose desk or banking77"):
        make_product("martians", tmp_path)
