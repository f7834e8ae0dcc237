"""What personal data, secrets and injection attempts look like in text.

Only types with a structure or a checksum are reported: names and places, as language models tag
them, hit most harmless texts and would drown the safety test in noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import phonenumbers
from stdnum import iban, luhn
from stdnum.us import ssn

MAX_TEXT = 50_000
"""Characters of a text that are looked at."""

Hit = tuple[str, str]
"""Name of the rule and the text it found."""

_CARD = re.compile(r"(?<![\d.])[2-6](?:[ -]?\d){12,18}(?![\d.]*\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_SSN = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_EMAIL = re.compile(r"\b[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_DIGITS = re.compile(r"\d(?:\D{0,3}\d){6}")

_ROLES = frozenset(
    {"admin", "billing", "contact", "hello", "help", "info", "no-reply", "noreply", "office"}
    | {"press", "privacy", "sales", "security", "service", "support", "team"}
)
"""Mailboxes of an organisation, not of a person (RFC 2142 and custom)."""

_BUSINESS_LINES = (
    phonenumbers.PhoneNumberType.TOLL_FREE,
    phonenumbers.PhoneNumberType.SHARED_COST,
    phonenumbers.PhoneNumberType.PREMIUM_RATE,
    phonenumbers.PhoneNumberType.UAN,
)

_SECRETS = {
    "aws-access-key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "github-token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{60,251})\b",
    "gitlab-token": r"\bglpat-[\w-]{20,64}\b",
    "slack-token": r"\bxox[abposr]-[A-Za-z0-9-]{10,250}\b",
    "google-api-key": r"\bAIza[\w-]{35}\b",
    "model-api-key": r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,200}\b",
    "stripe-key": r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,250}\b",
    "npm-token": r"\bnpm_[A-Za-z0-9]{36}\b",
    "hub-token": r"\bhf_[A-Za-z]{30,40}\b",
    "json-web-token": r"\beyJ[\w-]{8,2000}\.eyJ[\w-]{8,4000}\.[\w-]{8,2000}",
    "private-key": r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY-----",
}

_INJECTIONS = {
    "override": r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,40}"
    r"\b(?:previous|prior|above|earlier|system|your|all)\b[^.\n]{0,20}"
    r"\b(?:instructions?|prompts?|rules?|guidelines?|directions?)\b",
    "role-change": r"\b(?:you are now|act as|pretend to be|become)\b[^.\n]{0,40}"
    r"\b(?:dan|jailbroken|unrestricted|unfiltered|developer mode|no (?:rules|restrictions))\b",
    "prompt-leak": r"\b(?:reveal|print|show|repeat|output|tell me)\b[^.\n]{0,30}"
    r"\b(?:your|the|hidden|initial)\b[^.\n]{0,20}\b(?:system prompt|system message"
    r"|initial instructions|hidden instructions|hidden prompt)\b",
    "no-limits": r"\b(?:do anything now|without any (?:restrictions|filters|rules)"
    r"|jailbreak mode)\b",
    "chat-markup": r"<\|(?:im_start|im_end|system|endoftext)\|>|\[/?INST\]|<</?SYS>>",
}

_secrets = {name: re.compile(pattern) for name, pattern in _SECRETS.items()}
_injections = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _INJECTIONS.items()}


def personal_data(text: str) -> Iterator[Hit]:
    """Yield payment cards (Luhn), IBANs (mod 97), US SSNs (structure), e-mails and phones."""
    text = text[:MAX_TEXT]
    cards = [hit for hit in _all(_CARD, text) if luhn.is_valid(_digits(hit))]
    ibans = [hit for hit in _all(_IBAN, text) if iban.is_valid(hit)]
    yield from (("card", hit) for hit in cards)
    yield from (("iban", hit) for hit in ibans)
    yield from (("us-ssn", hit) for hit in _all(_SSN, text) if ssn.is_valid(hit))
    for hit in _all(_EMAIL, text):
        if hit.split("@")[0].lower() not in _ROLES:
            yield "e-mail", hit
    taken = "".join(_digits(hit) + "/" for hit in cards + ibans)
    yield from (hit for hit in _phones(text) if _digits(hit[1]).lstrip("0") not in taken)


def secrets(text: str) -> Iterator[Hit]:
    """Yield keys and tokens in the formats of well-known services."""
    return _by_rule(_secrets, text)


def injections(text: str) -> Iterator[Hit]:
    """Yield marks of an attempt to override the instructions."""
    return _by_rule(_injections, text)


def _by_rule(rules: dict[str, re.Pattern[str]], text: str) -> Iterator[Hit]:
    text = text[:MAX_TEXT]
    for name, pattern in rules.items():
        for hit in _all(pattern, text):
            yield name, hit


def _phones(text: str) -> Iterator[Hit]:
    """Yield valid numbers: international ones, and US ones in a customary grouping."""
    if not _DIGITS.search(text):
        return  # the matcher is the dearest of all detectors
    numbers = list(phonenumbers.PhoneNumberMatcher(text, None, phonenumbers.Leniency.VALID))
    customary = phonenumbers.Leniency.STRICT_GROUPING
    for match in phonenumbers.PhoneNumberMatcher(text, "US", customary):
        grouped = len(re.findall(r"\d+", match.raw_string)) >= 3
        if grouped and "+" not in match.raw_string:
            numbers.append(match)
    for match in numbers:
        if phonenumbers.number_type(match.number) not in _BUSINESS_LINES:
            yield "phone", match.raw_string


def _all(pattern: re.Pattern[str], text: str) -> list[str]:
    return [match.group() for match in pattern.finditer(text)]


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))
