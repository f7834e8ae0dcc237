"""Writes the tables of docs/broker-contract.md from the contract.

Run as ``python -m tests.broker_contract.document``; with ``--check`` it writes nothing and fails
when the document is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tests.broker_contract.case import Case
from tests.broker_contract.contract import CONTRACT

DOCUMENT = Path(__file__).parents[2] / "docs" / "broker-contract.md"
BEGIN, END = "<!-- contract: begin -->\n", "<!-- contract: end -->"
CURE = "run: python -m tests.broker_contract.document"


def tables(cases: Iterable[Case] = CONTRACT) -> str:
    """Return the tables of what is relied on, by noun, and of what is only claimed."""
    relied = [case for case in cases if case.status != "claimed only"]
    claimed = [case for case in cases if case.status == "claimed only"]
    blocks = []
    for noun in dict.fromkeys(case.noun for case in relied):
        rows = [_relied(case) for case in relied if case.noun == noun]
        head = ["| the broker must keep | because |", "|---|---|"]
        blocks.append("\n".join([f"### {noun.capitalize()}", "", *head, *rows]))
    head = ["| claim | why nobody relies on it | development broker |", "|---|---|---|"]
    blocks.append("\n".join(["### Claimed only", "", *head, *map(_claimed, claimed)]))
    return "\n\n".join(blocks) + "\n"


def fresh(text: str) -> str:
    """Return the document with its tables replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"{DOCUMENT.name} lacks the lines {BEGIN.strip()} and {END}; put them back"
        )
    return f"{before}{BEGIN}{tables()}{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the document, or with ``--check`` say whether it is stale."""
    if arguments not in ([], ["--check"]):
        print(f"unknown arguments {arguments}; usage: {CURE.removeprefix('run: ')} [--check]")
        return 2
    text = DOCUMENT.read_text(encoding="utf-8")
    wanted = fresh(text)
    if arguments and text != wanted:
        print(f"docs/{DOCUMENT.name} is stale; {CURE}")
        return 1
    if not arguments:
        DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


def _relied(case: Case) -> str:
    reasons = [f"[{file}](../{file}): {why}" for file, why in case.by.items()]
    where = f" *In production*: the development broker {case.local}." if case.local else ""
    only = " Asked of the development broker alone." if case.restarts else ""
    return f"| {case.sentence}.{where}{only} | {'; '.join(reasons)} |"


def _claimed(case: Case) -> str:
    return f"| {case.sentence}. | {case.note} | {case.local or 'keeps it'} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
