"""Answers a question about a picture from its facts, by rules, in English. Pure.

Where no rule fits, or the facts leave it open, the answer is `unknown`: nothing is guessed. Called by
`backend`. A question of any length takes a bounded time, because only its end is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from inferhub.backends.scene import presence
from inferhub.backends.scene.describe import SURE, describe, summary
from inferhub.backends.scene.reading import Text
from inferhub.backends.scene.vocabulary import (
    ANYTHING,
    Thing,
    color_of,
    counted,
    listed,
    plural,
    thing_at,
    things_in,
)
from inferhub.modalities.vision import Reply, VisionDelta

_READ_CHARS = 2000
_MOST_WORDS = 60
_WORD = re.compile(r"[a-z0-9]+(?:[-'][a-z0-9]+)?")
_POLITE = re.compile(
    r"^(?:(?:hi|hello|hey|please|now|so|ok|okay|and)\b[ ,!.]{0,3}"
    r"|(?:can|could|would) you (?:please )?(?:tell me|say|describe|read|count|list|name|give me)\b[ ,]{0,2}"
    r"|(?:tell me|i want to know|i would like to know|do you know)\b[ ,]{0,2}"
    r"|in (?:this|the) (?:picture|image|photo)[ ,]{1,2})",
    re.IGNORECASE,
)
_ASKS_YES_OR_NO = frozenset(
    {"is", "are", "does", "do", "can", "has", "have", "was", "were", "isn't", "aren't"}
)
_PICTURE = frozenset({"picture", "image", "photo", "photograph", "screenshot", "drawing", "scene"})


class Question(NamedTuple):
    words: Sequence[str]
    said: str
    """As it was asked, without courtesies."""

    def has(self, *words: str) -> bool:
        return any(word in self.words for word in words)

    def says(self, phrase: str) -> bool:
        return f" {phrase} " in f" {' '.join(self.words)} "


def reply(question: str, facts: VisionDelta, kinds: frozenset[str]) -> Reply:
    """`kinds` is all that the finders know."""
    asked = understood(question)
    text = Text(facts.text)
    for rule in _RULES:
        answer = rule(asked, facts, text, kinds)
        if answer is not None:
            return answer
    return Reply("The facts of the picture do not answer this question.", "", "unknown", 0.0)


def understood(question: str) -> Question:
    """The last question of a text, or all of a text that asks none."""
    tail = question[-_READ_CHARS:].strip()
    if "?" in tail:
        tail = tail[: tail.rindex("?")].rpartition("?")[2]
    said = max((part.strip() for part in re.split(r"[.!\n](?=\s|$)", tail)[-1:]), key=len) or tail
    for _ in range(4):
        shorter = _POLITE.sub("", said, count=1).strip()
        if shorter == said or not shorter:
            break
        said = _verb_kept(said, shorter)
    return Question(_WORD.findall(said.casefold().replace("\u2019", "'"))[:_MOST_WORDS], said)


def _verb_kept(before: str, after: str) -> str:
    """`Could you count the cats` is `count the cats`."""
    verb = re.search(
        r"you (?:please )?(describe|read|count|list|name)\b", before[: len(before) - len(after)], re.I
    )
    return f"{verb[1]} {after}" if verb else after


# --- rules, in the order in which they are asked -----------------------------------------------


def _asks_for_text(asked: Question, facts: VisionDelta, text: Text, kinds: frozenset[str]) -> Reply | None:
    first = asked.words[0] if asked.words else ""
    is_asked = (
        first in ("read", "transcribe", "ocr")
        or asked.says("what does it say")
        or (first in ("what", "which") and asked.has("written", "printed") and not asked.has("date"))
        or (first in ("what", "which") and asked.has("say", "says", "read", "reads", "text", "word", "words"))
    )
    if not is_asked or asked.has("how", "colour", "color", "language", "font"):
        return None
    if not text:
        return Reply("There is no text on the picture that can be read.", "none", "text", 0.6)
    score = min(line.score for line in facts.text)
    return Reply(f'The text reads: "{text.whole}".', text.whole, "text", score)


def _asks_how_many(asked: Question, facts: VisionDelta, text: Text, kinds: frozenset[str]) -> Reply | None:
    at = _after(asked.words, ("how", "many")) or _after(asked.words, ("number", "of"))
    if at is None and asked.words[:1] == ["count"]:
        at = 1
    if at is None:
        return None
    rest = [
        word for word in asked.words[at:] if word not in ("the", "all", "different", "of", "these", "visible")
    ]
    if rest[:1] in (["words"], ["lines"], ["colors"], ["colours"]):
        counts = {"words": len(text.words), "lines": len(facts.text)}
        count = counts.get(rest[0], len(facts.colors))
        return Reply(f"The picture has {counted(count, rest[0][:-1])}.", str(count), "count", 0.6)
    thing = thing_at(rest, 0, kinds)
    if thing is None or _is_qualified(rest[thing.end :]):
        return None
    found = presence.matching(facts, thing)
    named = _said(thing)
    if not found:
        return Reply(f"There are no {plural(named)} to be seen.", "0", "count", 0.5)
    verb = "is" if len(found) == 1 else "are"
    sentence = f"There {verb} {counted(len(found), named)} on the picture."
    return Reply(sentence, str(len(found)), "count", min(seen.score for seen in found))


def _asks_for_color(asked: Question, facts: VisionDelta, text: Text, kinds: frozenset[str]) -> Reply | None:
    if not asked.has("colour", "color", "colours", "colors", "coloured", "colored"):
        return None
    if asked.words[0] in _ASKS_YES_OR_NO or asked.words[0] == "how" or not facts.colors:
        return None
    things = things_in(asked.words, kinds - frozenset({"orange"}))
    if things and things[0].names:
        return _color_of_thing(things[0], facts)
    if asked.has("background", "ground"):
        return Reply(
            f"The background is {facts.colors[0].name}.", facts.colors[0].name, "color", facts.colors[0].share
        )
    rest = [w for w in asked.words if w not in _COLOR_QUESTION and w not in _PICTURE and w not in ANYTHING]
    if rest:
        # The colour of something that no finder knows.
        return None
    names = [color.name for color in facts.colors]
    is_one = asked.has("color", "colour")
    if is_one:
        return Reply(f"The main colour is {names[0]}.", names[0], "color", facts.colors[0].share)
    share = sum(color.share for color in facts.colors)
    return Reply(f"The colours are {listed(names)}.", ", ".join(names), "color", min(share, 1.0))


_COLOR_QUESTION = frozenset({
    "what", "what's", "which", "is", "are", "the", "main", "dominant", "most", "common", "color",
    "colour", "colors", "colours", "of", "in", "on", "this", "it", "its", "does", "do", "has", "have",
    "you", "see", "list", "name", "can", "i", "there", "that", "major", "overall", "primary",
    "prevailing", "used", "a", "all", "appear",
})  # fmt: skip


def _color_of_thing(thing: Thing, facts: VisionDelta) -> Reply | None:
    found = presence.matching(facts, thing)
    names = list(dict.fromkeys(seen.color for seen in found if seen.color))
    if len(names) == 1:
        verb = "is" if len(found) == 1 else "are"
        named = thing.said if len(found) == 1 else plural(thing.said)
        score = min(seen.score for seen in found)
        return Reply(f"The {named} {verb} {names[0]}.", names[0], "color", score)
    if len(names) > 1:
        return Reply(f"They are {listed(names)}.", ", ".join(names), "color", 0.5)
    return None


def _asks_for_field(asked: Question, facts: VisionDelta, text: Text, kinds: frozenset[str]) -> Reply | None:
    if not text or (asked.words and asked.words[0] in _ASKS_YES_OR_NO):
        return None
    for is_asked, find, name in _FIELDS:
        if is_asked(asked):
            value = find(text)
            if value is not None:
                return Reply(f"The {name} is {value}.", value, "text", 0.8)
            return None
    named = re.fullmatch(r"(?:what is|what's|whats|what was) (?:the )?(.{1,60})", " ".join(asked.words))
    if named is not None:
        name = re.sub(r" (?:on|in|of) (?:this|the) \w{1,20}$", "", named[1])
        value = text.value(name)
        if value is not None:
            return Reply(f"The {name} is {value}.", value, "text", 0.8)
    return None


def _number_of(*names: str) -> Callable[[Question], bool]:
    return lambda asked: asked.has(*names) and asked.has("number", "no", "id", "code", "reference", "ref")


_FIELDS: Sequence[tuple[Callable[[Question], bool], Callable[[Text], str | None], str]] = (
    (_number_of("invoice", "bill"), lambda t: t.code(("invoice", "bill")), "invoice number"),
    (_number_of("order"), lambda t: t.code(("order", "po")), "order number"),
    (_number_of("receipt"), lambda t: t.code(("receipt",)), "receipt number"),
    (_number_of("customer", "client"), lambda t: t.code(("customer", "client")), "customer number"),
    (_number_of("reference", "ref"), lambda t: t.code(("reference", "ref")), "reference"),
    (lambda q: q.has("phone", "telephone"), lambda t: t.phone(), "phone number"),
    (lambda q: q.has("email", "e-mail", "mail"), lambda t: t.email(), "e-mail address"),
    (lambda q: q.has("website", "url", "web", "homepage"), lambda t: t.web(), "web address"),
    (
        lambda q: q.has("due") and q.has("date", "when"),
        lambda t: t.date(("due date", "due", "payable by")),
        "due date",
    ),
    (lambda q: q.has("date"), lambda t: t.date(("invoice date", "order date", "date")), "date"),
    (lambda q: q.has("total") or q.says("amount due"), lambda t: t.total(), "total"),
    (
        lambda q: q.has("amount", "price", "cost", "costs", "pay") or q.says("how much"),
        lambda t: t.total() or (t.amounts()[0] if len(t.amounts()) == 1 else None),
        "amount",
    ),
    (lambda q: q.has("number") and q.has("what", "which"), lambda t: t.number(), "number"),
)


def _asks_yes_or_no(asked: Question, facts: VisionDelta, text: Text, kinds: frozenset[str]) -> Reply | None:
    if not asked.words or asked.words[0] not in _ASKS_YES_OR_NO:
        return None
    if asked.has("text", "writing", "words", "letters") and not asked.has(
        "say", "says", "than", "color", "colour"
    ):
        return presence.yes_no(bool(text), "There is text on the picture.", "There is no readable text.", 0.7)
    quoted = re.search(r"[\"\u201c']([^\"\u201d']{1,100})[\"\u201d']", asked.said)
    if quoted is None and asked.has("say", "says"):
        quoted = re.search(r"\bsays?\b[: ]{1,2}(.{1,100})$", asked.said, re.IGNORECASE)
    if quoted is not None:
        is_there = text.holds(quoted[1])
        told = quoted[1].strip()
        return presence.yes_no(is_there, f'It says "{told}".', f'It does not say "{told}".', 0.7)
    return presence.about_things(asked.words, facts, kinds)


def _asks_what(asked: Question, facts: VisionDelta, text: Text, kinds: frozenset[str]) -> Reply | None:
    first = asked.words[0] if asked.words else ""
    if first in ("describe", "caption", "summarize", "summarise") or asked.says("description"):
        return _described(facts)
    if first not in ("what", "which", "what's", "whats", "list", "name"):
        return None
    if asked.has("why", "how", "where", "who", "doing", "happening", "time", "brand", "made"):
        return None
    groups = [thing for thing in things_in(asked.words, kinds) if len(thing.names) != 1]
    if groups:
        return _which(groups[0], facts)
    rest = [word for word in asked.words if word not in _WHAT_QUESTION and word not in _PICTURE]
    return None if rest else _what(facts)


_WHAT_QUESTION = frozenset({
    "what", "what's", "whats", "which", "is", "are", "in", "on", "this", "that", "the", "it", "do", "you",
    "see", "can", "does", "show", "shows", "shown", "there", "be", "seen", "a", "of", "here", "i", "we",
    "contain", "depicted", "visible", "displayed", "kind", "sort", "type", "your", "depict", "look", "at",
})  # fmt: skip


def _which(thing: Thing, facts: VisionDelta) -> Reply | None:
    found = presence.matching(facts, thing)
    if not found:
        return (
            Reply(f"No {thing.said} is recognised on the picture.", "none", "object", 0.4)
            if thing.names
            else None
        )
    names = list(dict.fromkeys(seen.name for seen in found))
    score = min(seen.score for seen in found)
    return Reply(f"The picture shows {summary(found)}.", ", ".join(names), "object", score)


def _what(facts: VisionDelta) -> Reply:
    if facts.objects:
        names = list(dict.fromkeys(seen.name for seen in facts.objects))
        score = max(seen.score for seen in facts.objects)
        return Reply(f"The picture shows {summary(facts.objects)}.", ", ".join(names), "object", score)
    if facts.labels and facts.labels[0].score >= SURE:
        best = facts.labels[0]
        return Reply(f"It looks like {best.name}.", best.name, "label", best.score)
    return _described(facts)


def _described(facts: VisionDelta) -> Reply:
    told = describe(facts)
    return Reply(told, told, "description", 0.5)


_RULES = (_asks_for_text, _asks_how_many, _asks_for_color, _asks_for_field, _asks_yes_or_no, _asks_what)


# --- words -------------------------------------------------------------------------------------


def _after(words: Sequence[str], phrase: Sequence[str]) -> int | None:
    for at in range(len(words) - len(phrase) + 1):
        if tuple(words[at : at + len(phrase)]) == tuple(phrase):
            return at + len(phrase)
    return None


_HARMLESS = frozenset({
    "are", "is", "there", "in", "on", "the", "this", "picture", "image", "photo", "do", "you", "see",
    "can", "i", "we", "visible", "shown", "be", "seen", "does", "it", "show", "contain", "have", "of",
    "here", "a", "that", "scene", "drawing", "appear", "count", "total", "at", "all", "screenshot",
    "photograph", "altogether",
})  # fmt: skip


def _is_qualified(words: Sequence[str]) -> bool:
    """Whether more is asked than how many there are: `how many cups are on the left`, `with a handle`."""
    return any(word not in _HARMLESS for word in words)


def _said(thing: Thing) -> str:
    return f"{thing.color} {thing.said}" if thing.color and color_of(thing.color) else thing.said
