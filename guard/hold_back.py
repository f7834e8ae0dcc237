"""A growing answer: lets text go as soon as nothing in it can still become a finding.

As detectors are local (`guard.hit`), a hit that begins before a place is decided once no hit can
be growing there. What may be growing at the end of a text is a word (an e-mail address, a key), a
row of numbers (a card, a phone), an IBAN in groups, the head of a private key, or a term; all else
leaves at once, and nothing is held back longer than `MOST_HELD` characters.
"""

from __future__ import annotations

import re
import string
from time import perf_counter

from contracts.findings import Category
from guard.hit import WINDOW
from guard.layers import TEXT_CATEGORIES, hits_in
from guard.personal_data import plain
from guard.rules import Rules

_WORD = "".join(chr(code) for code in range(0x21, 0x7F))
_NUMBERS = string.digits + " \n()-./+"
_CAPITALS = string.digits + string.ascii_uppercase + " \n-"
_NUMBER_BEGINS = re.compile(r"[0-9+(]")
_IBAN_BEGINS = re.compile(r"[A-Z]{2}[0-9]{2}")
_KEY_BEGINS, _KEY_LENGTH = "-----BEGIN", 64

STEP = 60
"""Characters that leave together where the hold-back is full, so that a text that always looks as
if something grew is searched once in so many characters, not with each."""
MOST_HELD = WINDOW + STEP


class HeldBack:
    """The text of one answer, of which only a harmless part has been let go."""

    def __init__(self, rules: Rules, told: str) -> None:
        self._rules = rules
        self._told = told
        self._text = ""
        self._left = 0
        self._categories: list[Category] = [
            category for category in TEXT_CATEGORIES if rules.modes[category] == "enforce"
        ]
        self.found = False
        self.seconds = 0.0

    def feed(self, text: str) -> str:
        """Take more text and return what may leave; nothing more once `found`."""
        before = perf_counter()
        self._text += text
        released = self._release(self._settled())
        self.seconds += perf_counter() - before
        return released

    def finish(self) -> str:
        """Return the rest at the end of the text, unless it has a finding."""
        return self._release(len(self._text))

    def _settled(self) -> int:
        if not self._categories:
            return len(self._text)
        begin = max(0, len(self._text) - WINDOW) // STEP * STEP
        return max(begin + growing(self._text[begin:], self._rules), self._left)

    def _release(self, end: int) -> str:
        """Let the text before ``end`` go if no hit begins in it."""
        if self.found or end <= self._left:
            return ""
        begin = max(0, self._left - 1)  # what stands before a hit is part of the rule
        region = self._text[begin:]
        for category in self._categories:
            for hit in hits_in(category, self._rules, region):
                if self._left <= begin + hit.start < end and hit.text not in self._told:
                    self.found = True
                    return ""
        released = self._text[self._left : end]
        self._left = end
        return released


def growing(text: str, rules: Rules) -> int:
    """Return where the first hit may begin that the end of the text is a part of."""
    end = len(text)
    written = plain(text)
    place = len(written.rstrip(_WORD))
    run = len(written.rstrip(_NUMBERS))
    if run < end and (number := _NUMBER_BEGINS.search(written, run)):
        place = min(place, number.start())
    run = len(written.rstrip(_CAPITALS))
    if run < place and (account := _IBAN_BEGINS.search(written, run)):
        place = min(place, account.start())
    key = text.rfind(_KEY_BEGINS, max(0, end - _KEY_LENGTH))
    if key >= 0:
        place = min(place, key)
    return min(place, rules.canaries.growing(text), rules.content.growing(text))
