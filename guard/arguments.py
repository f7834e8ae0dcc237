"""The arguments of a tool call as whoever decodes their JSON reads them.

The escapes are read where they stand, and nothing is parsed: keys, values at any depth, a key that
stands twice and arguments that are no JSON are all read in one pass that grows with their length.
"""

from __future__ import annotations

import re

_ESCAPES = re.compile(r'(?:\\u[0-9a-fA-F]{4})+|\\["\\/bfnrt]')
_SHORT = {
    f"\\{letter}": character
    for letter, character in zip('"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True)
}
_DECIMAL = re.compile(r"[0-9][.eE]")
_STRING_OR_NUMBER = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"?|-?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?', re.DOTALL
)
"""What always matches to its own end, so that no part of it is tried again (linear time)."""
MAX_NUMBER = 40
"""Characters of a number that is read; longer ones are no card, account or phone number."""
MOST = 1e20
"""Numbers below it are told as whole ones: every card number (19 digits) is."""


def as_decoded(arguments: str) -> str:
    """Return arguments with their escapes read, and whole numbers without point and exponent."""
    if _DECIMAL.search(arguments):
        arguments = _STRING_OR_NUMBER.sub(_whole, arguments)
    return unescaped(arguments)


def unescaped(text: str) -> str:
    """Return a text with the characters that its JSON escapes stand for."""
    return _ESCAPES.sub(_character, text) if "\\" in text else text


def _character(match: re.Match[str]) -> str:
    found = match[0]
    if found in _SHORT:
        return _SHORT[found]
    # Two in a row may be the halves of one character.
    return bytes.fromhex(found.replace("\\u", "")).decode("utf-16-be", "replace")


def _whole(match: re.Match[str]) -> str:
    found = match[0]
    if found.startswith('"') or found.isdecimal() or len(found) > MAX_NUMBER:
        return found
    try:
        number = float(found)
    except ValueError:
        return found
    return f"{number:.0f}" if number.is_integer() and abs(number) < MOST else found
