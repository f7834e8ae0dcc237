"""Personal data put into other people's templates, and keys drawn from other people's formats."""

from __future__ import annotations

import ast
import random
import re
import string
from collections.abc import Callable, Iterator
from typing import Any

import phonenumbers
from stdnum import iban, luhn

_SLOT = re.compile(r"\{\{(\w+)\}\}")
_PRINTABLE = string.ascii_letters + string.digits
_ISSUERS = (("4", 16), ("51", 16), ("55", 16), ("37", 15), ("6011", 16))
_EACH = 40
"""Values that each template is filled with."""
_MOST = 24
"""Repetitions drawn of a part of a format that knows no bound."""


def filled(
    templates: list[str], people: list[dict[str, str]], rng: random.Random
) -> dict[str, list[str]]:
    """Return the templates by the personal data they hold; "none" holds no kind that is sought."""
    values = _values(people, rng)
    texts: dict[str, list[str]] = {kind: [] for kind in (*values, "none")}
    for template in templates:
        slots = _SLOT.findall(template)
        kinds = [kind for kind in values if _slot_of(kind) in slots]
        for kind in kinds:
            texts[kind] += [_fill(template, kind, values) for _ in range(_EACH)]
        if not kinds:
            texts["none"].append(_fill(template, "none", values))
    return texts


def _fill(template: str, kind: str, values: dict[str, Callable[[], str]]) -> str:
    def value(slot: re.Match[str]) -> str:
        if kind != "none" and slot[1] == _slot_of(kind):
            return values[kind]()
        return "that"

    return _SLOT.sub(value, template)


def _slot_of(kind: str) -> str:
    return {"card": "credit_card_number", "us-ssn": "ssn", "e-mail": "email"}.get(
        kind, "phone_number" if "phone" in kind else kind
    )


def _values(people: list[dict[str, str]], rng: random.Random) -> dict[str, Callable[[], str]]:
    emails = [person["EmailAddress"] for person in people]
    american = [person for person in people if person["Country"] == "US"]
    regions = sorted(phonenumbers.SUPPORTED_REGIONS)
    return {
        "card": lambda: _card(rng),
        "iban": lambda: _iban(rng),
        "us-ssn": lambda: (
            f"{rng.randint(1, 665):03}-{rng.randint(1, 99):02}-{rng.randint(1, 9999):04}"
        ),
        "e-mail": lambda: rng.choice(emails),
        "phone, international": lambda: _phone(rng.choice(regions)),
        "phone, as US people write it": lambda: rng.choice(american)["TelephoneNumber"],
    }


def _card(rng: random.Random) -> str:
    prefix, length = rng.choice(_ISSUERS)
    body = prefix + "".join(rng.choices(string.digits, k=length - 1 - len(prefix)))
    digits = body + str(luhn.calc_check_digit(body))
    if rng.random() < 0.5 or length != 16:
        return digits
    return rng.choice(" -").join(digits[place : place + 4] for place in range(0, 16, 4))


def _iban(rng: random.Random) -> str:
    number = rng.choice(
        [
            "DE00" + "".join(rng.choices(string.digits, k=18)),
            "GB00"
            + "".join(rng.choices(string.ascii_uppercase, k=4) + rng.choices(string.digits, k=14)),
        ]
    )
    number = number[:2] + iban.calc_check_digits(number) + number[4:]
    return str(iban.format(number)) if rng.random() < 0.5 else number


def _phone(region: str) -> str:
    number = phonenumbers.example_number(region)
    if number is None:
        raise ValueError(f"no example of a number in {region}")
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL))


def drawn_keys(source: str, rng: random.Random, each: int) -> dict[str, list[str]]:
    """Return keys of each format in a program text that compiles them, without running it."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            for name, value in zip(node.keys, node.values, strict=True):
                if isinstance(name, ast.Constant) and (form := _form(value)):
                    found[str(name.value)] = ["".join(_draw(form, rng)) for _ in range(each)]
    return found


def _form(value: ast.expr) -> str:
    for node in ast.walk(value):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
    return ""


def _draw(form: str, rng: random.Random) -> Iterator[str]:
    parser: Any = re._parser  # type: ignore[attr-defined] # the only parser of these formats
    yield from _parts(parser.parse(form), rng)


def _parts(nodes: Any, rng: random.Random) -> Iterator[str]:
    for kind, value in nodes:
        name = str(kind)
        if name == "LITERAL":
            yield chr(value)
        elif name in ("ANY", "NOT_LITERAL"):
            yield rng.choice(_PRINTABLE)
        elif name == "IN":
            yield _one_of(value, rng)
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = value
            for _ in range(rng.randint(least, max(least, min(int(most), _MOST)))):
                yield from _parts(inner, rng)
        elif name == "SUBPATTERN":
            yield from _parts(value[-1], rng)
        elif name == "BRANCH":
            yield from _parts(rng.choice(value[1]), rng)


def _one_of(choices: Any, rng: random.Random) -> str:
    kind, value = rng.choice([choice for choice in choices if str(choice[0]) != "NEGATE"])
    if str(kind) == "RANGE":
        return chr(rng.randint(*value))
    return chr(value) if str(kind) == "LITERAL" else rng.choice(_PRINTABLE)
