"""What is known of a picture, in words for a language model, and whether its words still say so. Pure.

Used by `describe`.
"""

from __future__ import annotations

import re

from inferhub.modalities.chat import ChatRequest, TextPart
from inferhub.modalities.vision import Reply, VisionDelta

_MOST_QUESTION_CHARS = 4000
_MOST_TEXT_CHARS = 4000
_MOST_OBJECTS = 30
_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_FIGURE = re.compile(r"\d(?:[\d.,:/-]{0,30}\d)?")
_WORD = re.compile(r"[^\W_]+")
_SLACK_CHARS = 120
"""That a sentence may be longer than the rules' own."""
_OWN_WORDS = 1
"""That are in neither question nor answer, nor say nothing."""
_SMALL_WORDS = frozenset({
    "a", "an", "the", "is", "are", "was", "be", "been", "it", "its", "this", "that", "these", "those",
    "there", "here", "in", "on", "of", "at", "by", "for", "from", "to", "with", "and", "or", "as", "but",
    "not", "no", "yes", "you", "your", "i", "we", "my", "our", "can", "see", "seen", "shows", "show",
    "shown", "picture", "image", "photo", "has", "have", "had", "do", "does", "which", "what", "who",
    "appears", "appear", "visible", "only", "exactly", "total", "all", "just", "one", "answer",
    "question", "located", "looks", "like", "contains", "contain", "displayed", "based", "according",
    "given", "so", "if",
})  # fmt: skip


def last_question(request: ChatRequest) -> str | None:
    """The text of the last user message: its end, where it is long."""
    for message in reversed(request.messages):
        if message.role != "user":
            continue
        content = message.content
        parts = [TextPart(content)] if isinstance(content, str) else content or []
        text = "\n".join(part.text for part in parts if isinstance(part, TextPart)).strip()
        return text[-_MOST_QUESTION_CHARS:] or None
    return None


def facts_of(facts: VisionDelta, title: str) -> str:
    """All that a model needs that cannot see it."""
    lines = [
        f"[{title}, {facts.width} x {facts.height} pixels, as another model sees it: {facts.description}"
    ]
    if facts.objects:
        seen = (
            f"{thing.color or ''} {thing.name} at {_place(thing.box, facts)}".strip()
            for thing in facts.objects[:_MOST_OBJECTS]
        )
        lines.append(f"Things: {'; '.join(seen)}.")
    text = "\n".join(line.text for line in facts.text)[:_MOST_TEXT_CHARS]
    if text and text not in facts.description:
        lines.append(f"Text on it:\n{text}")
    return "\n".join(lines) + "]"


def certain(reply: Reply | None) -> bool:
    """Whether rules answered."""
    return reply is not None and reply.kind != "unknown"


def says(said: str, reply: Reply, question: str) -> bool:
    """Whether a sentence gives the reply's value and hardly anything else: weak models add what is not so."""
    plain = " ".join(said.split())
    if not plain or len(plain) > len(reply.text) + _SLACK_CHARS:
        return False
    known = {*_FIGURE.findall(reply.text), *_FIGURE.findall(reply.value), *_FIGURE.findall(question)}
    numbers = {word for word in _words(plain) if word in _NUMBER_WORDS[2:]}
    allowed = {word for word in _words(f"{reply.text} {question}") if word in _NUMBER_WORDS}
    if reply.kind == "count":
        known.add(reply.value)
        allowed.add(_in_words(reply.value))
    if not known.issuperset(_FIGURE.findall(plain)) or not allowed.issuperset(numbers):
        return False
    words = _words(plain)
    own = {word for word in words if not word.isdecimal()} - _SMALL_WORDS - allowed
    if len(own - set(_words(f"{reply.text} {reply.value} {question}"))) > _OWN_WORDS:
        return False
    if reply.kind == "yes_no":
        return words[:1] == [reply.value]
    if reply.kind == "count":
        return reply.value in words or _in_words(reply.value) in words
    if reply.kind in ("text", "description"):
        return " ".join(reply.value.split()) in plain
    return all(set(_words(part)) <= set(words) for part in reply.value.split(","))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _in_words(value: str) -> str:
    number = int(value) if value.isdecimal() and len(value) < 3 else len(_NUMBER_WORDS)
    return _NUMBER_WORDS[number] if number < len(_NUMBER_WORDS) else value


def _place(box: tuple[float, float, float, float], facts: VisionDelta) -> str:
    """Where its middle is, in thirds of the picture."""
    across = min(2, int((box[0] + box[2]) / 2 * 3 / max(facts.width, 1)))
    down = min(2, int((box[1] + box[3]) / 2 * 3 / max(facts.height, 1)))
    where = f"{('top', 'middle', 'bottom')[down]} {('left', 'centre', 'right')[across]}"
    return "the centre" if where == "middle centre" else f"the {where}"
