"""Whether something is on the picture, and how much of it: the yes and no of `answers`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from inferhub.backends.scene.vocabulary import (
    Thing,
    color_of,
    counted,
    number_of,
    plural,
    things_in,
    with_article,
)
from inferhub.modalities.vision import Reply, SeenObject, VisionDelta

_NO = 0.5
"""What is not found may still be there."""
_COLOR_SHARE = 0.04
_BETWEEN = frozenset({
    "is", "are", "there", "a", "an", "any", "the", "some", "in", "on", "this", "picture", "image",
    "photo", "it", "does", "do", "you", "see", "can", "has", "have", "contain", "contains", "show",
    "shows", "visible", "i", "we", "and", "or", "more", "less", "fewer", "than", "at", "least", "most",
    "exactly", "only", "of", "that", "here", "isn't", "aren't", "shown", "one", "be", "seen", "to",
    "find", "include", "includes", "depict", "scene", "was", "were", "something", "anything", "thing",
    "things", "object", "objects", "colored", "coloured", "photograph", "main", "color", "colour",
    "background", "these", "those", "all", "drawing", "screenshot", "with",
})  # fmt: skip


def matching(facts: VisionDelta, thing: Thing) -> list[SeenObject]:
    """What is meant, of what is seen."""
    return [
        seen
        for seen in facts.objects
        if (not thing.names or seen.name in thing.names) and thing.color in (None, seen.color)
    ]


def yes_no(is_so: bool, if_so: str, if_not: str, confidence: float) -> Reply:
    text = f"Yes. {if_so}" if is_so else f"No. {if_not}"
    return Reply(text, "yes" if is_so else "no", "yes_no", confidence)


def about_things(words: Sequence[str], facts: VisionDelta, kinds: frozenset[str]) -> Reply | None:
    """Of a question that begins with its verb."""
    things = [thing for thing in things_in(words, kinds) if thing.names]
    named = frozenset(word for thing in things for word in words[max(0, thing.end - 3) : thing.end])
    strange = [
        w for w in words if w not in _BETWEEN and w not in named and not color_of(w) and number_of(w) is None
    ]
    if strange:
        return None
    if not things:
        return _about_color(words, facts)
    if "than" in words or {"least", "most", "exactly"} & set(words):
        return _compared(words, things, facts)
    first = things[0]
    if len(things) == 1 and first.color is None and first.end < len(words) and color_of(words[-1]):
        return _is_of_color(first, color_of(words[-1]) or "", facts)
    count = _count_before(words, first)
    if len(things) == 1 and count is not None:
        return _is_count(first, count, len(matching(facts, first)))
    return _is_there(things, facts, all_of="or" not in words)


def _is_there(things: Sequence[Thing], facts: VisionDelta, *, all_of: bool) -> Reply:
    found = [matching(facts, thing) for thing in things]
    is_so = all(found) if all_of else any(found)
    seen = [counted(len(some), _said(thing)) for thing, some in zip(things, found, strict=True) if some]
    missing = [with_article(_said(thing)) for thing, some in zip(things, found, strict=True) if not some]
    scores = [one.score for some in found for one in some]
    confidence = min(scores) if is_so and scores else _NO
    return yes_no(is_so, f"I see {' and '.join(seen)}.", f"I do not see {' or '.join(missing)}.", confidence)


def _is_of_color(thing: Thing, color: str, facts: VisionDelta) -> Reply | None:
    found = matching(facts, thing)
    if not found or not all(seen.color for seen in found):
        return None
    is_so = all(seen.color == color for seen in found)
    real = found[0].color
    return yes_no(
        is_so, f"The {thing.said} is {color}.", f"The {thing.said} is {real}.", min(s.score for s in found)
    )


def _about_color(words: Sequence[str], facts: VisionDelta) -> Reply | None:
    """`Is there anything red`, `is the background white`."""
    colors = [color for word in words if (color := color_of(word))]
    if len(colors) != 1 or not facts.colors:
        return None
    color = colors[0]
    if "background" in words or "main" in words:
        real = facts.colors[0].name
        what = "background" if "background" in words else "main colour"
        return yes_no(
            real == color, f"The {what} is {color}.", f"The {what} is {real}.", facts.colors[0].share
        )
    is_so = any(each.name == color and each.share >= _COLOR_SHARE for each in facts.colors)
    is_so = is_so or any(seen.color == color for seen in facts.objects)
    return yes_no(is_so, f"There is {color} on the picture.", f"There is no {color} to speak of.", 0.6)


def _compared(words: Sequence[str], things: Sequence[Thing], facts: VisionDelta) -> Reply | None:
    counts = [len(matching(facts, thing)) for thing in things]
    if len(things) == 2 and "than" in words:
        one, other = counts
        is_so = one > other if "more" in words else one < other
        told = " and ".join(counted(n, t.said) for n, t in zip(counts, things, strict=True))
        return yes_no(is_so, f"I see {told}.", f"I see {told}.", 0.5)
    limits = [number for word in words if (number := number_of(word)) is not None]
    if len(things) != 1 or len(limits) != 1:
        return None
    limit, count = limits[0], counts[0]
    if "least" in words:
        return _is_count(things[0], max(limit, count), count)
    if "most" in words:
        return _is_count(things[0], min(limit, count), count)
    if "than" not in words:
        return _is_count(things[0], limit, count)
    is_so = count > limit if "more" in words else count < limit
    told = f"I see {counted(count, things[0].said)}." if count else f"I see no {plural(things[0].said)}."
    return yes_no(is_so, told, told, 0.5)


def _is_count(thing: Thing, wanted: int, count: int) -> Reply:
    told = f"I see {counted(count, _said(thing))}." if count else f"I see no {plural(_said(thing))}."
    return yes_no(wanted == count, told, told, 0.5)


def _count_before(words: Sequence[str], thing: Thing) -> int | None:
    """`Are there three cups`; `a` and `one` ask whether there is any."""
    numbers = [n for word in words[: thing.end] if (n := number_of(word)) is not None]
    return numbers[0] if len(numbers) == 1 and numbers[0] != 1 else None


def _said(thing: Thing) -> str:
    return f"{thing.color} {thing.said}" if thing.color else thing.said
