"""English words for what the finders know: things, groups of them, colours, numbers. Data and look-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from inferhub.backends.scene.colors import NAMES as COLORS
from inferhub.backends.scene.shapes import NAMES as SHAPES

_GROUPS: Mapping[str, str] = {
    "animal": "bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe",
    "pet": "cat,dog",
    "vehicle": "bicycle,car,motorcycle,airplane,bus,train,truck,boat",
    "fruit": "banana,apple,orange",
    "vegetable": "broccoli,carrot",
    "food": "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake",
    "furniture": "bench,chair,couch,bed,dining table",
    "cutlery": "fork,knife,spoon",
    "shape": ",".join(SHAPES),
}
_OTHER_WORDS: Mapping[str, str] = {
    "people": "person", "human": "person", "human being": "person", "somebody": "person",
    "anyone": "person", "anybody": "person", "someone": "person",
    "bike": "bicycle", "motorbike": "motorcycle", "plane": "airplane", "aeroplane": "airplane",
    "automobile": "car", "lorry": "truck", "ship": "boat", "stoplight": "traffic light", "kitten": "cat",
    "puppy": "dog", "television": "tv", "tv screen": "tv", "sofa": "couch", "mug": "cup", "teacup": "cup",
    "coffee cup": "cup", "coffee mug": "cup", "phone": "cell phone", "cellphone": "cell phone",
    "mobile phone": "cell phone", "smartphone": "cell phone", "telephone": "cell phone",
    "table": "dining table", "plant": "potted plant", "ball": "sports ball", "doughnut": "donut",
    "fridge": "refrigerator", "hairdryer": "hair drier", "hair dryer": "hair drier", "disc": "circle",
    "disk": "circle", "oval": "ellipse", "remote control": "remote", "rucksack": "backpack",
    "necktie": "tie", "hotdog": "hot dog", "racket": "tennis racket", "hydrant": "fire hydrant",
    "computer mouse": "mouse", "notebook computer": "laptop", "teddy": "teddy bear",
}  # fmt: skip
_IRREGULAR: Mapping[str, str] = {
    "people": "people", "mice": "mouse", "knives": "knife", "sheep": "sheep", "skis": "skis",
    "scissors": "scissors", "buses": "bus", "bus": "bus", "dishes": "dish", "glasses": "glass",
    "children": "child", "men": "man", "women": "woman",
}  # fmt: skip
_COLOR_WORDS: Mapping[str, str] = {
    **{name: name for name in COLORS},
    "grey": "gray", "silver": "gray", "violet": "purple", "lilac": "purple", "turquoise": "cyan",
    "teal": "cyan", "golden": "yellow", "gold": "yellow", "beige": "brown", "tan": "brown",
    "magenta": "pink", "navy": "blue", "lime": "green", "maroon": "red", "crimson": "red",
    "scarlet": "red",
}  # fmt: skip
_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve",
)  # fmt: skip
ANYTHING = frozenset({"object", "thing", "item", "stuff"})
_MOST_WORDS = 3


class Thing(NamedTuple):
    """What a question speaks of."""

    said: str
    """In the singular."""
    names: frozenset[str]
    """Of the finders; empty: whatever there is."""
    color: str | None = None
    end: int = 0
    """The word after it."""


def thing_at(words: Sequence[str], at: int, kinds: frozenset[str]) -> Thing | None:
    """The thing that begins at this word, with its colour, if the finders know it."""
    color = None
    while at < len(words) and (found := color_of(words[at])) is not None:
        # Orange is a colour and a fruit: before another thing it is the colour.
        following = _noun_at(words, at + 1, kinds)
        if following is None and _noun_at(words, at, kinds) is not None:
            break
        color, at = found, at + 1
    noun = _noun_at(words, at, kinds)
    return None if noun is None else noun._replace(color=color)


def things_in(words: Sequence[str], kinds: frozenset[str]) -> list[Thing]:
    """All that are named, in order."""
    found: list[Thing] = []
    at = 0
    while at < len(words):
        thing = thing_at(words, at, kinds)
        if thing is None:
            at += 1
            continue
        found.append(thing)
        at = thing.end
    return found


def color_of(word: str) -> str | None:
    return _COLOR_WORDS.get(word)


def number_of(word: str) -> int | None:
    if word.isdecimal() and len(word) <= 4:
        return int(word)
    return _NUMBERS.index(word) if word in _NUMBERS else None


def in_words(number: int) -> str:
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def plural(name: str) -> str:
    special = {"person": "people", "mouse": "mice", "knife": "knives", "sheep": "sheep", "skis": "skis"}
    if name in special or name == "scissors":
        return special.get(name, name)
    if name.endswith(("s", "sh", "ch", "x")):
        return f"{name}es"
    return f"{name[:-1]}ies" if name.endswith("y") and name[-2] not in "aeiou" else f"{name}s"


def counted(count: int, name: str) -> str:
    return f"one {name}" if count == 1 else f"{in_words(count)} {plural(name)}"


def with_article(name: str) -> str:
    return name if name in ("skis", "scissors") else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _noun_at(words: Sequence[str], at: int, kinds: frozenset[str]) -> Thing | None:
    for length in range(min(_MOST_WORDS, len(words) - at), 0, -1):
        said = " ".join([*words[at : at + length - 1], _singular(words[at + length - 1])])
        names = _names_of(said, kinds)
        if names is not None:
            return Thing(said, names, None, at + length)
    return None


def _names_of(said: str, kinds: frozenset[str]) -> frozenset[str] | None:
    if said in kinds:
        return frozenset((said,))
    if said in _OTHER_WORDS:
        return frozenset((_OTHER_WORDS[said],))
    if said in _GROUPS:
        return frozenset(_GROUPS[said].split(","))
    return frozenset() if said in ANYTHING else None


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
