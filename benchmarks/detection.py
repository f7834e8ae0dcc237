"""How soon is a bad canary found, and how often is a good one rolled back? Simulates and tells.

``python -m benchmarks.detection`` takes some minutes on one core, writes
``benchmarks/results/detection.json`` with the machine, commit and seed, a plot beside it, and the
tables of ``docs/statistics.md``. ``--runs`` sets the number of simulated rollouts in most rows,
``--json`` another file (and then nothing else is written), ``--table`` only prints and writes the
tables of the results that are there. Events are counted, not timed: the machine's load changes
nothing, and the same seed gives the same figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import detection_assignment as assignment
from benchmarks import detection_plan as plans
from benchmarks import detection_rewards as rewards
from benchmarks import detection_traps as traps
from benchmarks.detection_report import draw_plot, write_tables
from benchmarks.detection_rules import (
    Bools,
    Counts,
    Ints,
    Rule,
    absolute_sprt,
    asymptotic_sequence,
    conditional_share,
    dirichlet_mixture,
    draw,
    first_look,
    fixed_threshold,
    mixture_sprt,
    naive_binomial,
    naive_z,
)
from benchmarks.loop import RESULTS, commit, machine

SEED = 20261122
RUNS = 4000
CHUNK = 250
LOOKS, PER_LOOK = 1000, 200

RULES: dict[str, Rule] = {
    "ours: conditional-share e-process": conditional_share(0.01),
    "the same at 0.4 %, the level of rollout.guardrails.safety": conditional_share(0.004),
    "Dirichlet mixture, concentration 100 (savvi's default)": dirichlet_mixture(0.01, 100.0),
    "asymptotic sequence (gbstats), from 30 canary requests": asymptotic_sequence(0.01, 20_000, 30),
    "mSPRT, spread 0.015, from 30 canary requests": mixture_sprt(0.01, 0.015, 30),
    "SPRT of the canary alone, 0.5 against 2 %": absolute_sprt(0.01, 0.005, 0.02),
    "fixed threshold 1 %, 3 failed windows": fixed_threshold(0.01, 3, 20),
    "fixed threshold 1.5 %, 3 failed windows": fixed_threshold(0.015, 3, 20),
    "fixed threshold 2 %, 3 failed windows": fixed_threshold(0.02, 3, 20),
    "fixed threshold 2 %, 1 failed window": fixed_threshold(0.02, 1, 20),
    "z test at each look, p < 0.01": naive_z,
    "exact binomial test at each look, p < 0.01": naive_binomial,
}

SETTINGS = {
    "1 % share, 0.5 to 2 %": (0.01, 0.005, 0.02),
    "5 % share, 0.5 to 2 %": (0.05, 0.005, 0.02),
    "10 % share, 0.5 to 2 %": (0.10, 0.005, 0.02),
    "25 % share, 0.5 to 2 %": (0.25, 0.005, 0.02),
    "50 % share, 0.5 to 2 %": (0.50, 0.005, 0.02),
    "5 % share, 0.5 to 1 %": (0.05, 0.005, 0.01),
    "5 % share, 5 to 10 % (slow first token)": (0.05, 0.05, 0.10),
}

REWARDS = {
    "graded, sd 0.4": (0.05, rewards.graded(0.7), rewards.graded(0.7)),
    "votes, mean 0.4": (0.05, rewards.votes(0.4), rewards.votes(0.4)),
    "votes, 1 % blame": (0.05, rewards.votes(0.98), rewards.votes(0.98)),
    "votes, 1 % blame, half canary": (0.5, rewards.votes(0.98), rewards.votes(0.98)),
    "all the same": (0.05, rewards.votes(1.0), rewards.votes(1.0)),
    "graded, worse by 0.05": (0.05, rewards.graded(0.65), rewards.graded(0.7)),
    "graded, worse by 0.1": (0.05, rewards.graded(0.6), rewards.graded(0.7)),
    "votes, worse by 0.1": (0.05, rewards.votes(0.3), rewards.votes(0.4)),
    "votes, worse by 1": (0.05, rewards.votes(-0.6), rewards.votes(0.4)),
}

SHARES = (
    *((0.05, 0.05), (0.5, 0.5), (0.01, 0.01)),
    *((0.05, 0.025), (0.05, 0.04), (0.05, 0.045), (0.05, 0.055), (0.05, 0.06), (0.05, 0.1)),
    *((0.5, 0.45), (0.5, 0.48)),
)

Seeds = Iterator[np.random.Generator]


def seeds() -> Seeds:
    """Yield independent generators, the same ones in every run of the program."""
    for child in np.random.SeedSequence(SEED).spawn(10_000):
        yield np.random.default_rng(child)


def rate(found: Bools) -> dict[str, float]:
    """Return a share of runs with its standard error."""
    share = float(found.mean())
    error = (share * (1.0 - share) / len(found)) ** 0.5
    return {"share": share, "se": error, "runs": float(len(found))}


def spread(values: Ints) -> list[float] | None:
    """Return the median and the 90th percentile, None of nothing."""
    return [float(np.percentile(values, at)) for at in (50, 90)] if len(values) else None


def chunks(runs: int, size: int = CHUNK) -> Iterator[int]:
    """Yield sizes that add up to the runs."""
    yield from [size] * (runs // size)
    if runs % size:
        yield runs % size


def stops(rules: dict[str, Rule], counts: Counts) -> dict[str, Ints]:
    """Return per rule the look, canary requests and violations of each run, -1 if it never did."""
    runs = np.arange(len(counts.canary))
    found = {}
    for name, rule in rules.items():
        at = first_look(rule(counts))
        row = np.stack([at, counts.canary[runs, at], counts.canary_bad[runs, at]])
        found[name] = np.where(at >= 0, row, -1)
    return found


def simulate(
    rules: dict[str, Rule], runs: int, weight: float, rates: tuple[float, float], rng: Seeds
) -> dict[str, Ints]:
    """Return the stops of each rule on runs of 200,000 requests at (canary, stable) rates."""
    generator = next(rng)
    parts = []
    for size in chunks(runs):
        held = (np.full(LOOKS, value) for value in (weight, *rates))
        parts.append(stops(rules, draw(generator, size, PER_LOOK, *held)))
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in rules}


def detection(runs: int, rng: Seeds) -> list[dict[str, Any]]:
    """Compare all rules at 5 % share: equal arms, and 2 % against 0.5 %."""
    equal = simulate(RULES, runs, 0.05, (0.005, 0.005), rng)
    worse = simulate(RULES, runs, 0.05, (0.02, 0.005), rng)
    return [_row(name, equal[name], worse[name]) for name in RULES]


def other_settings(runs: int, rng: Seeds) -> list[dict[str, Any]]:
    """Our rule at other shares and rates."""
    rows = []
    for name, (weight, stable, canary) in SETTINGS.items():
        rule: dict[str, Rule] = {name: conditional_share(0.01)}
        equal = simulate(rule, runs, weight, (stable, stable), rng)
        worse = simulate(rule, runs, weight, (canary, stable), rng)
        rows.append(_row(name, equal[name], worse[name]))
    return rows


def _row(name: str, equal: Ints, worse: Ints) -> dict[str, Any]:
    found = worse[:, worse[0] >= 0]
    return {
        "name": name,
        "false": rate(equal[0] >= 0),
        "power": rate(worse[0] >= 0),
        "canary": spread(found[1]),
        "total": spread((found[0] + 1) * PER_LOOK),
        "violations": spread(found[2]),
        "curve_equal": _curve(equal),
        "curve_worse": _curve(worse),
    }


def _curve(found: Ints) -> list[float]:
    """Return the canary requests by which 0.5, 1, … % of all runs had been rolled back."""
    ordered = np.sort(found[1][found[0] >= 0])
    ranks = np.ceil(np.arange(1, 201) / 200 * found.shape[1]).astype(np.int64) - 1
    return [float(ordered[rank]) for rank in ranks if rank < len(ordered)]


def four_traps(runs: int, rng: Seeds) -> list[dict[str, Any]]:
    """Nothing is wrong, yet something moves: wrong gates beside ours."""
    trap: dict[str, Callable[[np.random.Generator, int], dict[str, Bools]]] = {
        "an attack lifts both arms": traps.attack,
        "the share rises while the rate drifts": traps.ramp,
        "heavy offenders": traps.heavy_offenders,
        "feedback comes late": lambda generator, size: traps.delayed_feedback(generator, size)[0],
        "the share rises while rewards drift": traps.reward_ramp,
        "heavy raters": traps.heavy_raters,
    }
    rows = []
    for name, play in trap.items():
        generator = next(rng)
        parts = [play(generator, size) for size in chunks(runs, 125)]
        rows += [
            {"trap": name, "gate": gate, **rate(np.concatenate([part[gate] for part in parts]))}
            for gate in parts[0]
        ]
    return rows


def delay_bias(runs: int, rng: Seeds) -> list[dict[str, Any]]:
    """The mean bias of the gates on late feedback at minutes 5, 15, 30 and 60."""
    wrong, bias = traps.delayed_feedback(next(rng), min(runs, CHUNK))
    return [
        {"gate": gate, "bias": [None if np.isnan(x) else float(x) for x in row]}
        for gate, row in zip(wrong, bias, strict=True)
    ]


def reward_sequences(runs: int, rng: Seeds) -> list[dict[str, Any]]:
    """Compare sequences of rewards: how often they exclude 0, and after how many canary rewards."""
    rows = []
    for case, (weight, canary, stable) in REWARDS.items():
        generator = next(rng)
        parts: dict[tuple[str, float], list[tuple[Bools, Ints]]] = {}
        for size in chunks(runs, 50):
            arms = rewards.collect(generator, size, weight, canary, stable)
            for name, alpha in (*((x, 0.01) for x in rewards.SEQUENCES), ("ours", 0.001)):
                parts.setdefault((name, alpha), []).append(rewards.excluded(*arms, alpha, name))
        for (name, alpha), found in parts.items():
            at = np.concatenate([count for _, count in found])
            excluded = rate(np.concatenate([flag for flag, _ in found]))
            row = {"rewards": case, "sequence": name, "alpha": alpha, **excluded}
            rows.append({**row, "canary": spread(at[at >= 0])})
    return rows


def sample_ratio(runs: int, rng: Seeds) -> list[dict[str, Any]]:
    """Promised and true shares of users: alarms at alpha 0.01 %, and users until them."""
    rows = []
    for weight, share in SHARES:
        generator = next(rng)
        parts = [assignment.alarms(generator, size, weight, share) for size in chunks(runs)]
        for name in parts[0]:
            raised, users = (np.concatenate([part[name][at] for part in parts]) for at in (0, 1))
            rows.append({"weight": weight, "true": share, "test": name, **rate(raised)})
            rows[-1]["users"] = spread(users[raised])
    return rows


def whole_plans(runs: int, rng: Seeds) -> list[dict[str, Any]]:
    """What becomes of equal, twice and four times as bad candidates under plans and rules."""
    rows = []
    for plan, steps in plans.PLANS.items():
        for rule, asked in plans.RULES.items():
            fates = [_fate(runs, steps, asked, bad, next(rng)) for bad in (0.005, 0.01, 0.02)]
            rows.append({"plan": plan, "rule": rule, "fates": fates})
    return rows


def _fate(
    runs: int,
    steps: tuple[plans.Step, ...],
    rule: tuple[plans.Content, plans.Content],
    canary_rate: float,
    generator: np.random.Generator,
) -> dict[str, Any]:
    parts = [
        plans.follow(generator, size, steps, rule, canary_rate, 0.005) for size in chunks(runs)
    ]
    ends = {
        name: rate(np.concatenate([getattr(part, name) for part in parts]))
        for name in ("promoted", "rolled_back", "inconclusive")
    }
    return {**ends, "canary": spread(np.concatenate([part.canary for part in parts]))}


def measure(runs: int) -> dict[str, Any]:
    """Run everything and return the results."""
    rng = seeds()
    origin = {"machine": machine(), "commit": commit(), "seed": SEED, "runs": runs}
    parts: dict[str, Callable[[int, Seeds], list[dict[str, Any]]]] = {
        "detection": lambda given, source: detection(4 * given, source),
        "settings": other_settings,
        "traps": four_traps,
        "bias": delay_bias,
        "rewards": lambda given, source: reward_sequences(max(given // 2, 1), source),
        "sample_ratio": sample_ratio,
        "plans": lambda given, source: whole_plans(max(given // 2, 1), source),
    }
    results: dict[str, Any] = {}
    for name, part in parts.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = part(runs, rng)
    return {**origin, **results}


def main() -> int:
    """Simulate and write, or only write, what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"{RUNS} by default")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results only there")
    parser.add_argument("--table", action="store_true", help="write the tables of what is there")
    options = parser.parse_args()
    path: Path = options.json or RESULTS / "detection.json"
    if not options.table:
        encoded = msgspec.json.format(msgspec.json.encode(measure(options.runs)), indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded + b"\n")
    results = msgspec.json.decode(path.read_bytes())
    tables = write_tables(results, save=options.json is None)
    if options.json is None:
        draw_plot(results, path.with_suffix(".png"))
    print(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
