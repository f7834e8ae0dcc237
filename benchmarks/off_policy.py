"""Do off-policy estimates tell the truth? Tried where the truth is known, with interval coverage.

``python -m benchmarks.off_policy`` tries two places and writes ``off_policy.json`` and a plot to
``benchmarks/results``; ``--table`` prints what is there as Markdown.

Open Bandit: two logs of one fashion shop, one served at random, one by Thompson sampling. Each log
estimates the other policy's click rate, which the other log simply shows. The sampling policy is
taken as how often it showed each item at each position; there are no user ids, so every row counts
as a user. Over subsamples of 2,000 rows of the log, the interval covers when it holds the rate
shown; all come from one log, so what that log as a whole is off by is in every one of them.

Simulator: a small policy answers the support desk's questions, the learner trains on other users'
answers, and the evidence of each version is held against fresh answers of that version.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct
from tqdm import tqdm

from benchmarks.loop import RESULTS, commit, machine
from contracts.errors import UnavailableError
from contracts.evidence import Interval
from contracts.settings import load_settings
from learner import off_policy
from learner.off_policy import Floats, LoggedAnswers, cross_fitted, resample_users

ITEMS, POSITIONS = 34, 3
REPETITIONS, SUBSAMPLE, RESAMPLES = 200, 2000, 300
Logger = Literal["random", "bts"]
OTHER: dict[Logger, Logger] = {"random": "bts", "bts": "random"}
METHODS = ("ips", "snips", "doubly robust")


class Bandit(Struct, frozen=True):
    """One log: item and position shown, whether it was clicked, and how likely it was shown."""

    item_n: np.ndarray[Any, np.dtype[np.int64]]
    position_n: np.ndarray[Any, np.dtype[np.int64]]
    click_n: Floats
    propensity_n: Floats

    def shares(self) -> Floats:
        """Return how often each item was shown at each position, positions×items."""
        counts_pa = np.zeros((POSITIONS, ITEMS))
        np.add.at(counts_pa, (self.position_n, self.item_n), 1.0)
        return np.asarray(counts_pa / counts_pa.sum(axis=1, keepdims=True))

    def rows(self, place_n: np.ndarray[Any, np.dtype[np.int64]]) -> Bandit:
        """Return some of the rows."""
        return Bandit(*(getattr(self, name)[place_n] for name in self.__struct_fields__))


def read_bandit(data: Path, logger: Logger) -> Bandit:
    """Read the men's log of one policy; UnavailableError when the set is not there."""
    path = data / "obd" / "men" / logger / "men.csv.gz"
    if not path.is_file():
        raise UnavailableError(
            f"{path} is not there; get the Open Bandit Dataset (st-tech/zr-obp) and set data_dir"
        )
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    return Bandit(
        np.array([int(row["item_id"]) for row in rows]),
        np.array([int(row["position"]) - 1 for row in rows]),
        np.array([float(row["click"]) for row in rows]),
        np.array([float(row["propensity_score"]) for row in rows]),
    )


def weighed(log: Bandit, candidate_pa: Floats) -> LoggedAnswers:
    """Return a log weighed for the policy that shows items with these shares at each position."""
    users = tuple(str(number) for number in range(len(log.click_n)))
    positions_np = np.eye(POSITIONS)[log.position_n]
    predicted_n, expected_n = cross_fitted(
        lambda item_n: np.concatenate([np.eye(ITEMS)[item_n], positions_np], axis=1),
        log.item_n,
        candidate_pa[log.position_n],
        log.click_n,
        users,
    )
    return LoggedAnswers(
        weights_n=off_policy.importance_weights(
            np.log(np.maximum(candidate_pa[log.position_n, log.item_n], 1e-9)),
            np.log(log.propensity_n),
        ),
        rewards_n=log.click_n,
        costs_n=np.zeros_like(log.click_n),
        users=users,
        predicted_n=predicted_n,
        expected_n=expected_n,
    )


def estimates(log: LoggedAnswers, seed: int) -> dict[str, Interval]:
    """Return every method's estimate with its interval (two-sided 90 %)."""
    resampled = resample_users(log.users, seed, RESAMPLES)
    return {
        "ips": off_policy.ips_interval(log, resampled),
        "snips": off_policy.snips_interval(log, resampled),
        "doubly robust": off_policy.doubly_robust_interval(log, resampled),
    }


def open_bandit(data: Path, repetitions: int = REPETITIONS, seed: int = 0) -> list[dict[str, Any]]:
    """Return, per logging policy and method, the estimate, the truth shown, and the coverage."""
    logs: dict[Logger, Bandit] = {name: read_bandit(data, name) for name in OTHER}
    found = []
    for logger, target in OTHER.items():
        candidate_pa = logs[target].shares() if target == "bts" else _uniform()
        shown = float(logs[target].click_n.mean())
        shown_error = float(logs[target].click_n.std() / np.sqrt(len(logs[target].click_n)))
        whole = weighed(logs[logger], candidate_pa)
        support = off_policy.support(whole.weights_n, whole.users)
        covered = dict.fromkeys(METHODS, 0)
        rng = np.random.default_rng(seed)
        for number in tqdm(range(repetitions), desc=f"{logger} → {target}"):
            place_n = rng.choice(len(logs[logger].click_n), SUBSAMPLE, replace=False)
            part = weighed(logs[logger].rows(place_n), candidate_pa)
            for name, one in estimates(part, number).items():
                covered[name] += one.lower <= shown <= one.upper
        for name, one in estimates(whole, seed).items():
            found.append(
                {
                    "logger": logger,
                    "target": target,
                    "method": name,
                    "estimate": one.value,
                    "error": one.error,
                    "shown": shown,
                    "shown_error": shown_error,
                    "logged": float(logs[logger].click_n.mean()),
                    "covered": covered[name] / repetitions,
                    "repetitions": repetitions,
                    "effective_samples": support.effective_samples,
                    "samples": support.samples,
                    "mean_weight": support.mean_weight,
                }
            )
    return found


def _uniform() -> Floats:
    return np.full((POSITIONS, ITEMS), 1.0 / ITEMS)


# --- keeping and showing -----------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """Return the results as two Markdown tables."""
    lines = [
        "| log → policy | ESS / n | shown | logged | method | estimate | covers, nominal 90 % |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['logger']} → {row['target']} "
        f"| {row['effective_samples']:.0f} / {row['samples']} "
        f"| {row['shown']:.4f} ± {row['shown_error']:.4f} | {row['logged']:.4f} "
        f"| {row['method']} | {row['estimate']:.4f} ± {row['error']:.4f} "
        f"| {100 * row['covered']:.0f} % of {row['repetitions']} |"
        for row in result["open_bandit"]
    ]
    if result["simulator"]:
        from benchmarks.off_policy_simulator import table_rows

        lines += ["", *table_rows(result["simulator"])]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw estimates with their intervals beside what was shown."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, logger in zip(axes, OTHER, strict=True):
        rows = [row for row in result["open_bandit"] if row["logger"] == logger]
        axis.errorbar(
            range(len(rows)),
            [row["estimate"] for row in rows],
            yerr=[1.645 * row["error"] for row in rows],
            fmt="o",
            label=f"estimated from the log of {logger}",
        )
        axis.axhspan(
            rows[0]["shown"] - 1.645 * rows[0]["shown_error"],
            rows[0]["shown"] + 1.645 * rows[0]["shown_error"],
            alpha=0.2,
            label=f"shown by {rows[0]['target']}",
        )
        axis.axhline(rows[0]["logged"], linestyle=":", label=f"earned by {logger}")
        axis.set_xticks(range(len(rows)), [row["method"] for row in rows])
        axis.set_ylabel("click rate")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run what is asked for, keep it and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.off_policy", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of public data sets", metavar="DIR")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--seeds", type=int, default=3, help="runs of the simulator; 0: none")
    parser.add_argument("--table", action="store_true", help="print the tables only")
    options = parser.parse_args()
    path = RESULTS / "off_policy.json"
    if not options.table:
        from benchmarks.off_policy_simulator import simulate

        began, ran_on = time.process_time(), commit()
        result: dict[str, Any] = {
            "machine": machine(),
            "commit": ran_on,
            "open_bandit": open_bandit(
                options.data or load_settings().data_dir, options.repetitions
            ),
            "simulator": [row for seed in range(options.seeds) for row in simulate(seed)],
        }
        result["cpu_seconds"] = time.process_time() - began
        path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
        plot(result, path.with_suffix(".png"))
    print(table(msgspec.json.decode(path.read_bytes())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
