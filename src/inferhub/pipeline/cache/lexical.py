"""Whether two questions differ in a word that changes the answer, however alike their vectors.

Sentence embeddings hardly see a "not", a number, a name, or who does what to whom. Used by `semantic`. Pure.
Refuses in doubt: a paraphrase that is not recognised costs a computation, a wrong answer costs more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from inferhub.pipeline.cache.vocabulary import (
    ASKS,
    FUNCTION_WORDS,
    NEGATIONS,
    NEGATIVES,
    NUMBERS,
    OPPOSITES,
    UNITS,
)

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,:]\d+)*|[%€$£°+*/<>=-]")
_SENTENCE_START = re.compile(r"(?:^|[.!?:\n])[\s\"'(“]*$")
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")
_SUFFIXES = ("ations", "ation", "ings", "ing", "ies", "ied", "ed", "es", "s", "ly", "e", "y")
_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "mis", "de", "anti", "over", "under", "re")
_MAX_SWAPPED = 2


class Gist(NamedTuple):
    """What is compared of one question."""

    words: tuple[str, ...]
    """In their order, without case and endings."""
    content: frozenset[str]
    """Those of them that say something, numbers and names apart."""
    numbers: tuple[str, ...]
    names: tuple[str, ...]
    first: str
    """The first word, which is a name only if the other question says so."""
    units: frozenset[str]
    measures: tuple[str, ...]
    """The unit behind each number, empty where there is none."""
    negations: int
    negatives: int
    """Words of refusal and harm."""
    asks: frozenset[str]


def gist(text: str) -> Gist:
    words: list[str] = []
    numbers: list[str] = []
    names: list[str] = []
    measures: list[str] = []
    content: set[str] = set()
    units: set[str] = set()
    asks: set[str] = set()
    negations = negatives = 0
    follows_number = False
    for word, is_first in _words(text):
        folded = word.casefold().replace("’", "'").removesuffix("'s")
        is_number = not word[0].isalpha() or folded in NUMBERS
        stem = _number(folded) if is_number else _stem(folded)
        words.append(stem)
        if is_number:
            numbers.append(stem)
            measures.append("")
        elif folded in NEGATIONS or folded.endswith("n't"):
            negations += 1
        elif folded in UNITS:
            units.add(UNITS[folded])
            if follows_number:
                measures[-1] = UNITS[folded]
        elif word != word.lower() and not is_first and folded not in FUNCTION_WORDS:
            names.append(folded)
        elif folded in ASKS:
            asks.add(folded)
        elif folded not in FUNCTION_WORDS:
            content.add(stem)
            negatives += folded in NEGATIVES
        follows_number = is_number
    first = next((word.casefold() for word, _ in _words(text)), "")
    return Gist(
        words=tuple(words),
        content=frozenset(content),
        numbers=tuple(numbers),
        names=tuple(names),
        first=first,
        units=frozenset(units),
        measures=tuple(measures),
        negations=negations,
        negatives=negatives,
        asks=frozenset(asks),
    )


def differ(one: Gist, other: Gist) -> bool:
    """True where the two questions may not get the same answer."""
    if one.numbers != other.numbers or one.asks != other.asks:
        return True
    if one.negations != other.negations or one.negatives != other.negatives:
        return True
    if _names(one, other) != _names(other, one):
        return True
    if one.units and other.units and (one.units != other.units or one.measures != other.measures):
        return True
    return _is_reversed(one, other) or _is_narrower(one, other) or _is_swapped(one, other)


def _names(one: Gist, other: Gist) -> tuple[str, ...]:
    """In their order: from A to B is not from B to A."""
    if one.first in other.names and one.first not in one.names:
        return (one.first, *one.names)
    return one.names


def _is_reversed(one: Gist, other: Gist) -> bool:
    """A word on one side, its opposite on the other."""
    mine, theirs = set(one.words) - set(other.words), set(other.words) - set(one.words)
    for word in mine:
        if any(_STEMMED_OPPOSITES.get(word, _NONE) & {item} for item in theirs):
            return True
        if any(p + word in theirs or (word.startswith(p) and word[len(p) :] in theirs) for p in _PREFIXES):
            return True
    return False


def _is_narrower(one: Gist, other: Gist) -> bool:
    """The same question, with a condition more."""
    mine = one.content - {_stem(name) for name in other.names}
    theirs = other.content - {_stem(name) for name in one.names}
    return mine < theirs or theirs < mine


def _is_swapped(one: Gist, other: Gist) -> bool:
    """The same sentence with another word in a place: a thing exchanged for another, not another wording."""
    if len(one.words) != len(other.words):
        return False
    swapped = [(a, b) for a, b in zip(one.words, other.words, strict=True) if a != b]
    return 0 < len(swapped) <= _MAX_SWAPPED and any(
        a not in FUNCTION_WORDS and b not in FUNCTION_WORDS for a, b in swapped
    )


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Each word, and whether it begins a sentence, where a capital letter says nothing."""
    for match in _WORD.finditer(text):
        word = match.group()
        is_first = bool(_SENTENCE_START.search(text, max(0, match.start() - 8), match.start()))
        # One in capitals altogether, or with one inside, is a name wherever it stands.
        yield word, is_first and word[1:] == word[1:].lower()


def _number(word: str) -> str:
    if word in NUMBERS:
        return NUMBERS[word]
    return word.replace(",", "") if _THOUSANDS.fullmatch(word) else word


def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word.removesuffix(suffix)
    return word


_NONE: frozenset[str] = frozenset()
_STEMMED_OPPOSITES: dict[str, set[str]] = {}
for _left, _right in OPPOSITES:
    for _word, _others in ((_left, _right), (_right, _left)):
        for _form in _word:
            _STEMMED_OPPOSITES.setdefault(_stem(_form), set()).update(map(_stem, _others))
