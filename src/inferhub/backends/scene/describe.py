"""Facts to a few sentences, by a template. Pure. What is not sure is said to be a guess."""

from __future__ import annotations

from collections import Counter

from inferhub.backends.scene.vocabulary import counted, listed, with_article
from inferhub.modalities.vision import SeenObject, VisionDelta

SURE = 0.5
_POSSIBLE = 0.25
_MOST_TEXT_CHARS = 300
_MOST_KINDS = 6
_MOST_COLORS = 3


def describe(facts: VisionDelta) -> str:
    """Never empty."""
    first = " ".join(sentence for sentence in (_objects(facts), _label(facts)) if sentence)
    whose = "Its" if first else "The picture's"
    return " ".join(sentence for sentence in (first, _colors(facts, whose), _text(facts)) if sentence)


def summary(objects: list[SeenObject]) -> str:
    """`two cups and a red circle`; empty where there are none."""
    counts = Counter(_named(seen) for seen in objects)
    said = [
        with_article(name) if count == 1 else counted(count, name)
        for name, count in counts.most_common(_MOST_KINDS)
    ]
    return listed(said) if said else ""


def _named(seen: SeenObject) -> str:
    return f"{seen.color} {seen.name}" if seen.color else seen.name


def _objects(facts: VisionDelta) -> str:
    found = summary(facts.objects)
    if found:
        return f"The picture shows {found}."
    return "" if facts.text or _label(facts) else "The picture shows nothing that is recognised."


def _label(facts: VisionDelta) -> str:
    if not facts.labels or facts.labels[0].score < _POSSIBLE:
        return ""
    best = facts.labels[0]
    return f"It looks like {best.name}." if best.score >= SURE else f"It may be {best.name}."


def _colors(facts: VisionDelta, whose: str) -> str:
    if not facts.colors:
        return ""
    names = [color.name for color in facts.colors[:_MOST_COLORS]]
    return f"{whose} main colour{' is' if len(names) == 1 else 's are'} {listed(names)}."


def _text(facts: VisionDelta) -> str:
    if not facts.text:
        return ""
    whole = " / ".join(line.text for line in facts.text)
    if len(whole) > _MOST_TEXT_CHARS:
        whole = f"{whole[:_MOST_TEXT_CHARS].rstrip()}…"
    return f'The text on it reads: "{whole}".'
