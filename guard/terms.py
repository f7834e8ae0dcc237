"""Many fixed terms looked for at once, whatever their case (Aho and Corasick, 1975)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping

import ahocorasick

from guard.hit import WINDOW, Hit

MAX_TERM = WINDOW - 2


class Terms:
    """The terms of one list. ``whole`` terms are hit as whole words only."""

    def __init__(self, rules: Mapping[str, str], *, whole: bool) -> None:
        """``rules`` gives the rule of each term; empty terms and too long ones are the caller's."""
        self.rules = dict(rules)
        self._whole = whole
        self._sorted = sorted({fold(term): rule for term, rule in rules.items()})
        self._first = frozenset(term[0] for term in self._sorted)
        self._longest = max(map(len, self._sorted), default=0)
        self._automaton = ahocorasick.Automaton()
        for term, rule in rules.items():
            self._automaton.add_word(fold(term), (rule, len(term)))
        if self._sorted:
            self._automaton.make_automaton()

    def find(self, text: str) -> Iterator[Hit]:
        """Yield the terms in a text."""
        if not self._sorted:
            return
        folded = fold(text)
        for last, (rule, length) in self._automaton.iter(folded):
            start = last + 1 - length
            if not (self._whole and _inside_a_word(folded, start, last + 1)):
                yield Hit(rule, text[start : last + 1], start)

    def growing(self, text: str) -> int:
        """Return where the first term begins that the end of the text may be a part of."""
        if not self._sorted:
            return len(text)
        begin = max(0, len(text) - self._longest)
        folded = fold(text[begin:])
        for place, character in enumerate(folded):
            if character in self._first and self._may_begin(folded, place):
                return begin + place
        return len(text)

    def _may_begin(self, folded: str, place: int) -> bool:
        if self._whole and place and folded[place - 1].isalnum() and folded[place].isalnum():
            return False
        end = folded[place:]
        found = bisect_left(self._sorted, end)
        return found < len(self._sorted) and self._sorted[found].startswith(end)


def fold(text: str) -> str:
    """Return the text in lower case with plain spaces, character for character."""
    if not text.isascii():
        # In lower case a capital dotted i is two characters, which would move all that follows.
        text = text.replace("\u0130", "i").replace("\u00a0", " ")
    return text.lower().replace("\n", " ").replace("\t", " ").replace("\r", " ")


def _inside_a_word(text: str, start: int, end: int) -> bool:
    before = start > 0 and text[start - 1].isalnum() and text[start].isalnum()
    return before or (end < len(text) and text[end].isalnum() and text[end - 1].isalnum())
