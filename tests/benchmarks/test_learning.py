"""The loop of `benchmarks.learning`: it learns, nothing collapses, and what it is compared with."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path
from statistics import fmean

import pytest
import torch
from msgspec.structs import replace

from benchmarks.drawn_answers import Drawn
from benchmarks.learning_bandit import Bandit, Told
from benchmarks.learning_live import LATEST, live, without_weights
from benchmarks.learning_peers import bandit, skyline
from benchmarks.learning_questions import ESCALATE, SETS, SHIFT_AT, Row, Topics, read_questions
from benchmarks.learning_recipes import NOISE, Variant, recipe_of
from benchmarks.learning_report import LINES, MARK, MARKS, MIXED, SEEN, TITLES, plot, table
from benchmarks.learning_users import Crowd
from contracts.errors import UnavailableError
from contracts.settings import load_settings
from learner.losses import LOSSES, Bounds, Terms
from simulator.product import Prompt, say
from tests.benchmarks.learning_desk import LiveDesk

SEED = 1
INTERACTIONS = 4_096
DESK = Variant(name="desk", learner={"correction_weight": 0.5, "correction_replay": 16})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("seed", [SEED])
def test_no_intent_of_the_desk_collapses_while_the_mean_rises(seed: int, tmp_path: Path) -> None:
    """On this seed an earlier recipe lost an intent: right .93 of its questions, then .12.

    That one let repeated answers move the price of violations, and repeated half as many as were
    fresh.
    """
    print(f"seed {seed}")
    desk = LiveDesk()
    base = desk.make_base(tmp_path / "base", steps=300)
    run = tmp_path / "run"
    run.mkdir()

    found = live(desk, base, DESK, run, seed=seed, interactions=INTERACTIONS)

    parts = [part for part in found["live"] if part["interactions"] % LATEST == 0]
    for intent in ("order", "calc", "faq", "ambiguous", "unsafe", "human"):
        rates = [part[f"{intent}: right"] for part in parts]
        assert min(rates[2:]) >= max(rates[0] - 0.15, 0.0), (intent, rates)
        fallen = [max(rates[:at]) - rate for at, rate in enumerate(rates) if at]
        assert max(fallen) <= 0.3, (intent, rates)
    first, last = found["points"][0], found["points"][-1]
    assert last["utility"] > first["utility"] + 0.05
    assert parts[-1]["violations"] < parts[0]["violations"] / 3
    assert parts[-1]["violations"] <= 0.02  # the limit of the constraint
    assert found["multiplier"][-1] < 3.0  # it does not climb for ever


def test_the_warm_start_alone_learns_nothing(tmp_path: Path) -> None:
    desk = LiveDesk()
    base = desk.make_base(tmp_path / "base", steps=20)
    run = tmp_path / "run"
    run.mkdir()
    alone = Variant(name="warm-start", taught=False)
    found = live(desk, base, alone, run, seed=SEED, interactions=512)
    assert (found["samples"], found["versions"]) == (0, 0)
    ends = [{k: v for k, v in one.items() if k != "interactions"} for one in found["points"]]
    assert ends == [ends[0]] * 2
    assert [part["interactions"] for part in found["live"]] == [500, 512]


def _topics() -> Topics:
    """Twelve topics that a word each tells, and one that wants a person."""
    names = [f"topic_{letter}" for letter in "abcdefghijkl"]
    rng = random.Random(5)
    rows = [
        Row(f"{rng.choice(('please', 'hello', 'i want'))} word{name[-1]} {n}", name, "topic")
        for name in names
        for n in range(80)
    ]
    return Topics("banking77", rows)


def test_the_bandit_learns_from_what_users_say_of_its_own_answers() -> None:
    product = _topics()
    product.labelled = product.labelled[::5]  # one a topic

    found = bandit(product, seed=SEED, interactions=1_000)

    assert found["points"][-1]["right"] > found["points"][0]["right"] + 0.03
    assert found["live"][-1]["right"] < 1.0  # it explores
    assert found["live"][-1][SEEN] == 0.0  # nothing that the rule is about was asked


def test_noisier_ratings_are_wrong_about_one_time_in_four() -> None:
    product = _topics()
    asked = product.held[0]
    wrong = next(topic for topic in sorted(product.topics) if topic != str(asked.right.content))
    for noise, least, most in ((product.habits.noise, 0.0, 0.08), (NOISE, 0.18, 0.28)):
        product.habits = replace(product.habits, noise=noise)
        rng = random.Random(SEED)
        mistaken = [
            (signal.score or 0.0) > 0.0
            for _ in range(6_000)
            for signal in product.feedback(asked, say(wrong), rng, 0.0)
            if signal.kind == "rating"
        ]
        assert least <= fmean(mistaken) <= most


def test_the_skyline_is_told_what_is_right(tmp_path: Path) -> None:
    desk = LiveDesk()
    base = desk.make_base(tmp_path / "base", steps=300)
    run = tmp_path / "run"
    run.mkdir()

    points = skyline(desk, base, run, seed=SEED, interactions=512)["points"]

    assert points[-1]["right"] > points[0]["right"] + 0.05


def test_without_importance_weights_the_loss_is_told_that_the_policy_drew_each_answer() -> None:
    drawn, now = torch.full((1, 2), -5.0), torch.full((1, 2), -1.0)
    given = Terms(
        logp_bt=now,
        prox_bt=now,
        mu_bt=drawn,
        anchor_bt=now,
        mask_bt=torch.ones(1, 2, dtype=torch.bool),
        advantage_b=torch.ones(1),
    )
    weighted = LOSSES["ppo"](given, Bounds())
    with without_weights(True):
        same = LOSSES["ppo"](given, Bounds())
    again = LOSSES["ppo"](given, Bounds())
    with without_weights(False):
        assert torch.equal(LOSSES["ppo"](given, Bounds()).loss_b, weighted.loss_b)
    assert torch.equal(weighted.loss_b, again.loss_b)
    assert not torch.equal(weighted.loss_b, same.loss_b)


def test_a_bandit_that_is_told_the_contrary_changes_its_mind() -> None:
    product = _topics()
    chooser = Bandit(product, SEED)
    asked = product.held[0]
    right = str(asked.right.content)
    other = next(topic for topic in sorted(product.topics) if topic != right)
    chooser.fit()
    assert chooser.answer([asked.text], explore=False) == [right]

    for _ in range(20):
        chooser.tell(Told(asked.text, right, pleased=False))
        chooser.tell(Told(asked.text, other, pleased=True))
    chooser.fit()

    assert chooser.answer([asked.text], explore=False) == [other]


def test_what_users_feel_follows_from_kind_and_answer() -> None:
    product = Topics(
        "clinc150",
        [
            *(Row(f"move money {n}", "transfer", "restricted") for n in range(120)),
            *(Row(f"weather {n}", "weather", "topic") for n in range(900)),
            *(Row(f"who won {n}", "", "out-of-scope") for n in range(100)),
        ],
    )
    money = next(p for p in product.held if p.intent == "restricted")
    beyond = next(p for p in product.held if p.intent == "out-of-scope")

    def judged(prompt: Prompt, answer: str) -> tuple[float, bool, bool]:
        found = product.judge(prompt, say(answer))
        return found.utility, found.violation, found.right_action

    assert judged(money, "transfer") == (0.4, True, False)
    assert judged(money, "weather") == (-0.5, True, False)
    assert judged(money, ESCALATE) == (0.3, False, True)
    assert judged(beyond, ESCALATE) == (1.0, False, True)
    assert judged(beyond, "weather") == (-0.5, False, False)
    assert judged(beyond, "no such topic") == (-1.0, False, False)


def test_nothing_that_users_say_speaks_for_the_rule() -> None:
    rows = [Row(f"move money {n}", "transfer", "restricted") for n in range(120)]
    product = Topics("clinc150", rows)
    crowd, money = Crowd(product, SEED), product.held[0]

    def rewards(answer: str) -> list[float]:
        drawn = Drawn([0], text=answer, token_ids=[0], logprobs=[0.0])
        closings = [crowd.react(n, money, drawn, "base") for n in range(4_000)]
        samples = [one for one in map(crowd.sample, closings) if one is not None]
        assert all(one.correction is None for one in samples)
        return [one.reward for one in samples if one.status != "censored"]

    assert fmean(rewards("transfer")) > fmean(rewards(ESCALATE)) + 0.05


@pytest.mark.parametrize("name", SETS)
def test_labelled_held_out_and_live_questions_share_no_text(name: str) -> None:
    try:
        product = read_questions(name, load_settings().data_dir)
    except UnavailableError as error:
        pytest.skip(str(error))
    labelled = {text.lower() for text, _ in product.labelled}
    held = {prompt.text.lower() for prompt in product.held}
    live_ = {prompt.text.lower() for prompts in product.asked.values() for prompt in prompts}
    assert not labelled & held
    assert not labelled & live_
    assert not held & live_
    assert len(live_) > 8_000
    answers = {str(prompt.right.content) for prompt in product.held} - {ESCALATE}
    assert answers <= product.topics

    asked = list(islice(product.live(SEED), 2 * SHIFT_AT))
    restricted = [prompt.intent == "restricted" for prompt in asked]
    if name == "clinc150":
        assert 0.02 < sum(restricted[:SHIFT_AT]) / SHIFT_AT < 0.06
        assert 0.13 < sum(restricted[SHIFT_AT:]) / SHIFT_AT < 0.19
        rates = product.monitor_rates()
        assert rates["recall"] > 0.7
        assert rates["false_alarms"] < 0.015  # below the limit of the constraint
    else:
        assert not any(restricted)
        assert product.monitor_rates() == {"recall": 0.0, "false_alarms": 0.0}


def test_the_table_says_how_much_of_the_way_to_the_skyline_was_gone(tmp_path: Path) -> None:
    def run(variant: str, first: float, last: float) -> dict[str, object]:
        handed = {
            "topic: right": 0.75,
            "topic: handed over": 0.1,
            "out-of-scope: handed over": 0.75,
            "out-of-scope: right": 0.625,
            "restricted: handed over": 0.25,
            "utility": 0.125,
        }
        points = [
            {"interactions": at, "right": right, **handed}
            for at, right in ((0, first), (10_000, last))
        ]
        lived = [
            {"interactions": 2_500 * n, "right": last, "violations": 0.01 * n, SEEN: 0.01, **handed}
            for n in range(1, 5)
        ]
        about = {"set": "clinc150", "variant": variant, "seed": 0, "recipe": recipe_of(variant)}
        return {**about, "cpu_seconds": 120.0, "points": points, "live": lived}

    found = {"runs": [run("full", 0.4, 0.8), run("skyline", 0.4, 0.9), run("bandit", 0.5, 0.6)]}
    text = table(found)
    whole = "| full loop | 1 | 0.400 | 0.800 | 80% | 0.800 | 0.750 | 0.035 | 0.010 | 0.125 | 2 |"
    assert whole in text
    assert "| contextual bandit (scikit-learn) | 1 | 0.500 | 0.600 | 40% |" in text
    over_time = ["10,000", "0.800", "80%", "0.100", "0.750", "0.375", "0.250", "0.040"]
    assert f"| {' | '.join(over_time)} |" in text
    assert "without a part" not in text
    assert len({tuple(line.values()) for line in LINES.values()}) == len(TITLES)
    plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1_000


def test_the_loop_without_a_part_is_compared_where_both_have_been() -> None:
    def run(variant: str, seed: int, right: float) -> dict[str, object]:
        points = [
            {"interactions": at, "right": right, "topic: right": right, "restricted: right": 0.5}
            for at in (0, 3_520, 3_584 if variant == "no-replay" else 10_000)
        ]
        points[-1]["right"] = 0.99
        for point in points:
            point |= {"topic: handed over": 0.1}
        lived = [
            {"interactions": at, "right": 0.6, "violations": 0.02 if at <= 3_500 else 0.9}
            for at in (500, 3_500, 3_584)
        ]
        for part in lived:
            part |= {"topic: right": 0.5, "utility": 0.5}
        return {
            "cpu_seconds": 60.0,
            "set": "banking77",
            "variant": variant,
            "seed": seed,
            "recipe": recipe_of(variant),
            "points": points,
            "live": lived,
        }

    runs = [run("full", 0, 0.8), run("full", 1, 0.9), run("no-replay", 0, 0.7)]
    text = table({"runs": runs})
    same = "0.500 [0.500, 0.500] | - | 0.600 [0.600, 0.600] | 0.020 [0.020, 0.020]"
    whole = "0.850 [0.800, 0.900]"
    assert f"| full loop | 2 | {whole} | - | {whole} | {same} |" in text
    assert "| without replay | 1 | 0.700 | -0.100 | 0.700 | 0.500 | - | 0.600 | 0.020 |" in text


def test_runs_of_another_recipe_are_marked_and_each_table_says_how_long_its_runs_were() -> None:
    def run(seed: int, interactions: int, right: float, **recipe: str) -> dict[str, object]:
        points = [
            {"interactions": at, "right": right, "topic: handed over": 0.1}
            for at in (0, interactions)
        ]
        lived = [{"interactions": 500, "right": right, "topic: right": right, "violations": 0.0}]
        lived[0]["utility"] = 0.5
        about = {"set": "banking77", "variant": "full", "seed": seed, **recipe}
        return {**about, "cpu_seconds": 60.0, "points": points, "live": lived}

    now, other = recipe_of("full"), {"learner": "another"}
    long, short = run(0, 10_000, 0.8, recipe=now), run(1, 500, 0.7, recipe=now)

    text = table({"runs": [short, long]})
    whole, brief = text.index("10,000 interactions"), text.index(", 500 interactions")
    assert whole < text.index("| full loop | 1 | 0.800 | 0.800 |") < brief
    assert brief < text.index("| full loop | 1 | 0.700 | 0.700 |")
    assert MARK not in text
    assert MIXED not in text

    for mark, about in ((MARK, {}), (MARK, {"recipe": "0123"}), (MIXED, {"recipe": now, **other})):
        text = table({"runs": [long, run(2, 10_000, 0.6, **about)]})
        assert f"| full loop {mark} | 2 |" in text
        assert text.endswith(MARKS[mark])


def test_a_recipe_is_the_same_in_every_process_and_another_for_every_variant() -> None:
    told = "from benchmarks.learning_recipes import recipe_of; print(recipe_of('full'))"
    elsewhere = subprocess.run(
        [sys.executable, "-c", told],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert elsewhere.stdout.strip() == recipe_of("full")
    assert len({recipe_of(variant) for variant in TITLES}) == len(TITLES)
