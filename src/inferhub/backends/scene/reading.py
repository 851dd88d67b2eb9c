"""Finds a value in the text of a picture: an amount, a number, a date, what stands behind a name.

Pure over lines of text. Every pattern is bounded, and so is what is looked at. Called by `answers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from inferhub.modalities.vision import TextLine

_MOST_LINES = 400
_MOST_CHARS = 300
"""Of a line."""
_SIGN = r"(?:[$€£¥₹]|\b(?:USD|EUR|GBP|CHF|JPY|CAD|AUD)\b|US\$)"
_DIGITS = r"\d{1,12}(?:[.,' ]\d{3}){0,5}(?:[.,]\d{1,2})?(?![\d])"
_AMOUNT = re.compile(rf"-?{_SIGN} ?-?{_DIGITS}|{_DIGITS} ?{_SIGN}")
_BARE_AMOUNT = re.compile(r"\d{1,12}(?:[.,']\d{3}){0,5}[.,]\d{2}(?!\d)")
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}\.?"
_DATE = re.compile(
    rf"\b(?:\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/.]\d{{1,2}}[-/.]\d{{2,4}}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)? ?{_MONTH},? ?\d{{4}}|{_MONTH} ?\d{{1,2}}(?:st|nd|rd|th)?,? ?\d{{4}})\b",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}")
_WEB = re.compile(r"(?:https?://|www\.)[^\s]{3,200}", re.IGNORECASE)
_PHONE = re.compile(r"\+?\(?\d{1,4}\)?(?:[ ./-]?\(?\d{2,4}\)?){2,5}")
_CODE = re.compile(r"#? ?((?:[A-Z]{1,8}[-/_ ]?)?[A-Z0-9]{0,12}\d[A-Za-z0-9/_-]{0,30})")
_BEFORE_CODE = re.compile(r"^(?:\s|[:.#№=-]|\b(?:no|nr|num|number|id|code|ref)\b)*", re.IGNORECASE)
_NUMBER = re.compile(r"\d(?:[\d.,' ]{0,18}\d)?")
_TOTALS = (
    "grand total", "total due", "amount due", "balance due", "amount payable", "total amount",
    "total to pay", "invoice total", "order total", "total",
)  # fmt: skip
_NO_TOTALS = re.compile(r"sub-? ?total", re.IGNORECASE)


class Text:
    """The lines of one picture, in reading order."""

    def __init__(self, lines: Sequence[TextLine]) -> None:
        self._lines = lines[:_MOST_LINES]
        self._texts = [line.text[:_MOST_CHARS] for line in self._lines]

    def __bool__(self) -> bool:
        return bool(self._texts)

    @property
    def whole(self) -> str:
        return "\n".join(self._texts)

    @property
    def words(self) -> list[str]:
        return self.whole.split()

    def total(self) -> str | None:
        """What has to be paid."""
        for name in _TOTALS:
            for rest in self._after(name, unless=_NO_TOTALS):
                found = _AMOUNT.search(rest) or _BARE_AMOUNT.search(rest)
                if found:
                    return found[0].strip()
        return None

    def amounts(self) -> list[str]:
        return _distinct(match[0].strip() for text in self._texts for match in _AMOUNT.finditer(text))

    def code(self, names: Sequence[str]) -> str | None:
        """The number of a document or a thing, which may have letters: `2026-1187`."""
        for name in names:
            for rest in self._after(name):
                found = _CODE.match(_BEFORE_CODE.sub("", rest))
                if found:
                    return found[1].rstrip("-/_")
        return None

    def date(self, names: Sequence[str] = ()) -> str | None:
        """Behind one of these names, or the only one that there is."""
        for name in names:
            for rest in self._after(name):
                found = _DATE.search(rest)
                if found:
                    return found[0]
        return _only(match[0] for text in self._texts for match in _DATE.finditer(text))

    def email(self) -> str | None:
        return _only(match[0] for text in self._texts for match in _EMAIL.finditer(text))

    def web(self) -> str | None:
        return _only(match[0].rstrip(".,;)") for text in self._texts for match in _WEB.finditer(text))

    def phone(self) -> str | None:
        for name in ("telephone", "phone", "mobile", "tel", "call"):
            for rest in self._after(name):
                found = _PHONE.search(rest)
                if found:
                    return found[0].strip()
        return None

    def number(self) -> str | None:
        """The only one there is."""
        return _only(match[0].strip() for text in self._texts for match in _NUMBER.finditer(text))

    def value(self, name: str) -> str | None:
        """Whatever stands behind `NAME:`."""
        for text in self._texts:
            key, colon, rest = text.partition(":")
            if colon and rest.strip() and _plain(key) == _plain(name):
                return rest.strip()
        return None

    def holds(self, said: str) -> bool:
        return _plain(said) in _plain(self.whole) if _plain(said) else False

    def _after(self, name: str, unless: re.Pattern[str] | None = None) -> Iterator[str]:
        """What follows the name: in its line, beside it, below it."""
        pattern = re.compile(rf"(?<![a-z]){re.escape(name)}(?![a-z])", re.IGNORECASE)
        for at, text in enumerate(self._texts):
            found = pattern.search(text)
            if found is None or (unless is not None and unless.search(text[: found.end()])):
                continue
            yield text[found.end() :]
            for other in range(at + 1, min(at + 4, len(self._texts))):
                if self._is_beside(at, other):
                    yield self._texts[other]
            for other in range(at + 1, min(at + 8, len(self._texts))):
                if self._is_below(at, other):
                    yield self._texts[other]
                    break

    def _is_beside(self, one: int, other: int) -> bool:
        _, top, right, bottom = self._lines[one].box
        left, other_top, _, other_bottom = self._lines[other].box
        shared = min(bottom, other_bottom) - max(top, other_top)
        return left >= right - (bottom - top) and shared > 0.4 * min(bottom - top, other_bottom - other_top)

    def _is_below(self, one: int, other: int) -> bool:
        left, top, right, bottom = self._lines[one].box
        other_left, other_top, other_right, _ = self._lines[other].box
        height = bottom - top
        is_near = 0 <= other_top - top - 0.5 * height <= 2 * height
        return is_near and min(right, other_right) > max(left, other_left)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def _distinct(found: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(found))


def _only(found: Iterator[str]) -> str | None:
    """None where there are several: which one is meant is anybody's guess."""
    distinct = _distinct(found)
    return distinct[0] if len(distinct) == 1 else None
