"""A text in clauses, so that sound comes early: the first is short, later ones are longer. Pure.

Nothing is lost or doubled: the clauses joined are the text but for blanks. A word, a number or an
abbreviation is never cut; what has no blank for `LONGEST_WORD` characters is no word.
"""

# Signs of other scripts and of phonetics are what this is about.
# ruff: noqa: RUF001

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from unicodedata import east_asian_width

FIRST_CHARS = 40
NEXT_CHARS = (90, 160)
"""How long the second clause, and every one after it, may grow: while one is heard the next is made."""
LONGEST_WORD = 120
_LEAST_FIRST_CHARS = 8
_PATIENCE = 1.6
"""How much longer a first clause may be that ends where a phrase does."""
_WIDE_WORTH = 3
"""A sign of Chinese or Japanese takes as long to say as three letters."""

_SENTENCE = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”）]*|\n+")
_CLAUSE = re.compile(r"[,;:—–][\"'”’»)\]]*(?=\s)|[、，；：]")
_BLANK = re.compile(r"\s+")
_SMALL_WORDS = re.compile(r"(?:\s[^\W\d_]{1,3})+\s+$")
_SHORT = """
mr mrs ms dr prof st sr sra jr vs etc no nos vol fig al inc ltd co corp gen col capt lt sgt rev hon dept
est approx jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun ave blvd rd e.g
i.e cf p pp ed eds u.s a.m p.m srta dña ud uds pág núm av m mme mlle mm sig dott ing avv art cap pag tel
ecc exmo exma sto sta ltda z.b bzw usw nr
"""
_ABBREVIATIONS = frozenset(_SHORT.split())


def clauses(text: str, first_chars: int = FIRST_CHARS) -> Iterator[str]:
    """Pieces of `text`, none of them blank."""
    marks = _marks(text)
    worth = _WIDE_WORTH if _is_wide(text) else 1
    start, made = 0, 0
    while start < len(text):
        if made == 0:
            end = _first_cut(text, start, first_chars // worth, marks)
        else:
            end = _cut(text, start, NEXT_CHARS[min(made, len(NEXT_CHARS)) - 1] // worth, marks)
        piece = text[start:end].strip()
        start = end
        if piece:
            made += 1
            yield piece


def _is_wide(text: str) -> bool:
    wide = sum(1 for sign in text if sign >= "\u2e80" and east_asian_width(sign) in "WF")
    return wide * 2 > len(text)


class _Marks:
    """Positions where a text may be cut, by how good a place it is."""

    def __init__(self, sentences: list[int], clauses: list[int], blanks: list[int]) -> None:
        self.by_worth = (sentences, clauses, blanks)


def _marks(text: str) -> _Marks:
    sentences = [m.end() for m in _SENTENCE.finditer(text) if _ends(text, m.start(), m.end())]
    marks = [m.end() for m in _CLAUSE.finditer(text)]
    blanks = [m.end() for m in _BLANK.finditer(text) if not _holds(text, m.start(), m.end())]
    return _Marks(sentences, marks, blanks)


def _first_cut(text: str, start: int, limit: int, marks: _Marks) -> int:
    """The first place that is good enough: what is short is heard soon."""
    start += _indent(text, start)
    least = min(_LEAST_FIRST_CHARS, limit // 2)
    sentences, marked, _ = marks.by_worth
    ends = [p[i] for p in (sentences, marked) if (i := bisect_right(p, start + least)) < len(p)]
    end = min([*ends, len(text)])
    # A phrase that is torn sounds wrong: it is better a little late.
    return end if end <= start + limit * _PATIENCE else _cut(text, start, limit, marks)


def _cut(text: str, start: int, limit: int, marks: _Marks) -> int:
    """Where the clause ends that begins at `start`: as late as it may, at the best kind of place."""
    start += _indent(text, start)
    if len(text) - start <= limit:
        return len(text)
    least = limit // 3
    for positions in marks.by_worth[:2]:
        found = _last_within(positions, start + least, start + limit)
        if found is not None:
            return found
    for positions in marks.by_worth:
        found = _last_within(positions, start, start + limit)
        if found is not None:
            return (
                _before_small_words(text, start + least, found) if positions is marks.by_worth[2] else found
            )
    return _after_long_word(start, len(text), marks)


def _before_small_words(text: str, least: int, end: int) -> int:
    """In front of articles and prepositions, which belong to what follows them."""
    found = _SMALL_WORDS.search(text[least:end])
    return end if found is None else least + found.start() + 1


def _indent(text: str, start: int) -> int:
    rest = text[start:]
    return len(rest) - len(rest.lstrip())


def _last_within(positions: list[int], after: int, until: int) -> int | None:
    index = bisect_right(positions, until) - 1
    return positions[index] if index >= 0 and positions[index] > after else None


def _after_long_word(start: int, end: int, marks: _Marks) -> int:
    """The next place of any worth; inside what is too long to be a word where there is none near."""
    nexts = [p[i] for p in marks.by_worth if (i := bisect_right(p, start)) < len(p)]
    return min([*nexts, start + LONGEST_WORD, end])


def _ends(text: str, start: int, end: int) -> bool:
    """Whether a mark ends a sentence; a full stop after an abbreviation or before a small letter does not."""
    mark = text[start:end].rstrip("\"'”’»)]")
    after = text[end:].lstrip()[:1]
    if mark != "." or not after:
        return True
    return not (after.islower() or _is_abbreviation(text[:start]))


def _holds(text: str, start: int, end: int) -> bool:
    """Whether the blank between `start` and `end` belongs to what is around it: `1 000`, `Dr. Smith`."""
    before, after = text[max(0, start - 20) : start], text[end : end + 1]
    if not before or (before[-1].isdigit() and after.isdigit()):
        return True
    return before.endswith(".") and _is_abbreviation(before.rstrip("."))


def _is_abbreviation(before: str) -> bool:
    """Whether the last word in front of a full stop is one, or an initial."""
    word = (before[-20:].split() or [""])[-1].lstrip("(\"'“‘«¿¡[")
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper())
