"""Labelled pairs of questions: the same in other words, or nearly the same with another answer.

Made from `semantic_templates` by a fixed rule, so that every run judges the same pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.semantic_templates import CALIBRATION, JUDGEMENT, Template

Kind = Literal["paraphrase", "negation", "number", "name", "unit", "entity"]
"""What differs; everything but a paraphrase needs another answer."""
KINDS: tuple[Kind, ...] = ("paraphrase", "negation", "number", "name", "unit", "entity")

PER_KIND = 10
"""Pairs of one kind that a template gives, where it has so many."""


@dataclass(frozen=True, slots=True)
class Pair:
    template: int
    kind: Kind
    first: str
    second: str

    @property
    def is_same(self) -> bool:
        return self.kind == "paraphrase"


def halves() -> tuple[list[Pair], list[Pair]]:
    """To calibrate on, and to judge with: no template is in both."""
    return pairs(CALIBRATION), pairs(JUDGEMENT)


def pairs(templates: Sequence[Template]) -> list[Pair]:
    """All of them, without repetitions, template after template."""
    found: dict[tuple[str, str], Pair] = {}
    for number, template in enumerate(templates):
        draw = random.Random(number)
        for kind in KINDS:
            made = 0
            # More tries than pairs: some are drawn twice, and not every template has every kind.
            for pair in _endless(template, number, kind, draw):
                key = (min(pair.first, pair.second), max(pair.first, pair.second))
                if key not in found:
                    found[key] = pair
                    made += 1
                if made == PER_KIND:
                    break
    return list(found.values())


def _endless(template: Template, number: int, kind: Kind, draw: random.Random) -> Iterator[Pair]:
    slots = [name for name in template.slots if name.startswith(kind)]
    if kind not in ("paraphrase", "negation") and not slots:
        return
    for _ in range(PER_KIND * 6):
        values = {name: draw.choice(choices) for name, choices in template.slots.items()}
        if kind == "paraphrase":
            one, other = draw.sample(template.wordings, 2)
            yield Pair(number, kind, one.format(**values), other.format(**values))
        elif kind == "negation":
            one, other = draw.choice(template.wordings), draw.choice(template.opposites)
            yield Pair(number, kind, one.format(**values), other.format(**values))
        else:
            # Half of them in the very same words but for the one.
            one = draw.choice(template.wordings)
            other = draw.choice([one, draw.choice(template.wordings)])
            slot = draw.choice(slots)
            rest = [value for value in template.slots[slot] if value != values[slot]]
            changed = {**values, slot: draw.choice(rest)}
            yield Pair(number, kind, one.format(**values), other.format(**changed))
