"""What personal data look like in text: a structure and, wherever there is one, a checksum.

Names and places, as language models tag them, hit most harmless texts and would drown the safety
test in noise; they are not looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import phonenumbers
from stdnum import iban, luhn
from stdnum.us import ssn

from guard.hit import Hit

_NUMBER = re.compile(r"[0-9+(][0-9 \n()./+-]*")
"""A row of what cards, social security and phone numbers consist of, and whatever ends it: a form
that always matches to the end of the row is never tried again from within it (linear time)."""
_NUMBER_ENDS, _SHORTEST_NUMBER = " \n()./+-", 8
_ACCOUNT = re.compile(r"[A-Z]{2}[0-9]{2}[ \n-]{0,2}[A-Z0-9]")
_CARD = re.compile(
    r"(?<![0-9.])(?=([2-6](?:[ \n-]{0,2}[0-9]){12,18}|[2-6][0-9]{3}(?:\.[0-9]{4}){3})"
    r"(?![0-9]|\.[0-9]))"
)
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12,15}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12,15}|62\d{14,17}",
    re.ASCII,
)
"""Lengths and first digits by issuer (ISO/IEC 7812)."""
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])(?=([A-Z]{2}[0-9]{2}(?:[ \n-]{0,2}[A-Z0-9]){11,30})(?![A-Za-z0-9]))"
)
_SSN = re.compile(r"(?<![0-9-])([0-9]{3}-[0-9]{2}-[0-9]{4})(?![0-9-])")
_EMAIL = re.compile(
    r"(?<![\w.%+@-])([\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24})(?![A-Za-z0-9-])",
    re.ASCII,
)
_WORLD_PHONE = re.compile(r"(?<![\w+])(\+ ?[1-9](?:[ .()/-]{0,2}[0-9]){6,14})(?![0-9])", re.ASCII)
_US_PHONE = re.compile(
    r"(?<![\w.+-])((?:1[ .-])?(?:\([0-9]{3}\) ?|[0-9]{3}[ .-])[0-9]{3}[ .-][0-9]{4})"
    r"(?![0-9-]|\.[0-9])",
    re.ASCII,
)

_DIGITS = "".join(chr(first + digit) for first in (0xFF10, 0x660, 0x6F0) for digit in range(10))
"""Full-width and Arabic-Indic digits."""
_SPACES = "\u00a0\u2007\u2008\u2009\u200a\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x2007))
)
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_PLAIN = str.maketrans(
    _DIGITS + _SPACES + _DASHES, "0123456789" * 3 + " " * len(_SPACES) + "-" * len(_DASHES)
)
_GAPS = str.maketrans("\n-", "  ")

_TOLL_FREE = re.compile(r"^(?:1[ .-])?\(?8(?:00|33|44|55|66|77|88)")

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


def personal_data(text: str) -> Iterator[Hit]:
    """Yield payment cards (Luhn), IBANs (mod 97), US SSNs (structure), e-mails and phones.

    Whatever spaces, dashes and digits the text is written with; hits tell the plain ones.
    """
    text = plain(text)
    if "@" in text:
        yield from _emails(text)
    if _ACCOUNT.search(text):
        yield from _ibans(text)
    for row in _NUMBER.finditer(text):
        length = len(row[0].rstrip(_NUMBER_ENDS))
        if length < _SHORTEST_NUMBER:
            continue
        begin, end = row.start(), row.start() + length + 2  # two more: what follows counts, too
        yield from _cards(text, begin, end)
        yield from _social_security(text, begin, end)
        yield from _phones(text, begin, end)


def plain(text: str) -> str:
    """Return the text with ASCII spaces, dashes and digits for others, character for character."""
    return text if text.isascii() else text.translate(_PLAIN)


def is_card(digits: str) -> bool:
    """Whether it has the length and first digits of an issuer, and the check digit is right."""
    return _ISSUERS.fullmatch(digits) is not None and luhn.is_valid(digits)


def _emails(text: str) -> Iterator[Hit]:
    for match in _EMAIL.finditer(text):
        if match[1].partition("@")[0].lower() not in _ROLES:
            yield Hit("e-mail", match[1], match.start())


def _cards(text: str, begin: int, end: int) -> Iterator[Hit]:
    for match in _CARD.finditer(text, begin, end):
        if is_card(re.sub(r"[^0-9]", "", match[1])):
            yield Hit("card", match[1], match.start())


def _social_security(text: str, begin: int, end: int) -> Iterator[Hit]:
    for match in _SSN.finditer(text, begin, end):
        if ssn.is_valid(match[1]):
            yield Hit("us-ssn", match[1], match.start())


def _ibans(text: str) -> Iterator[Hit]:
    for match in _IBAN.finditer(text):
        for found in _shorter(match[1].translate(_GAPS)):
            if _remainder_is_one(found) and iban.is_valid(found):
                end = match.start() + len(found.rstrip())
                yield Hit("iban", text[match.start() : end], match.start())
                break


def _remainder_is_one(text: str) -> bool:
    """Whether the check digits are right (ISO 7064, mod 97-10); cheap, before all other rules."""
    compact = text.replace(" ", "")
    digits = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return int(digits) % 97 == 1


def _phones(text: str, begin: int, end: int) -> Iterator[Hit]:
    """Yield valid numbers: international ones, and US ones in a customary grouping."""
    for match in _WORLD_PHONE.finditer(text, begin, end):
        for found in _shorter(match[1]):
            if _is_personal_phone(found, None):
                yield Hit("phone", found, match.start())
                break
    for match in _US_PHONE.finditer(text, begin, end):
        if _TOLL_FREE.search(match[1]) is None and _is_personal_phone(match[1], "US"):
            yield Hit("phone", match[1], match.start())


def _is_personal_phone(text: str, region: str | None) -> bool:
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return False
    if not phonenumbers.is_valid_number(number):
        return False
    return phonenumbers.number_type(number) not in _BUSINESS_LINES


def _shorter(text: str) -> Iterator[str]:
    """Yield the text, then without its last group, and so on: what follows may not belong to it."""
    yield text
    while " " in text:
        text = text.rpartition(" ")[0]
        yield text
