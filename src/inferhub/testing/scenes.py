"""Pictures made by a program, with questions whose answers it knows: what the vision model is scored on.

Drawn from photographs, shapes and texts by a seeded generator; used by `benchmarks` and by tests. It knows
nothing of the rules that answer.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

_COLORS = {
    "black": (15, 15, 15), "gray": (128, 128, 130), "white": (252, 252, 250), "red": (210, 30, 35),
    "orange": (250, 140, 10), "brown": (125, 72, 30), "yellow": (248, 216, 35), "green": (40, 150, 60),
    "blue": (35, 80, 205), "purple": (125, 45, 165), "pink": (245, 130, 185),
}  # fmt: skip
_SHAPES = ("circle", "square", "rectangle", "triangle")
_WORDS = (
    "harbor", "window", "yellow", "garden", "winter", "signal", "market", "silver", "bridge", "orange",
    "planet", "museum", "forest", "kitchen", "library", "station", "exit", "open", "closed", "welcome",
    "caution", "sale",
)  # fmt: skip
_MONTHS = ("January", "March", "April", "June", "August", "October", "December")


@dataclass(frozen=True, slots=True)
class Asked:
    kind: str
    """`count`, `color`, `text`, `yes_no`, `object`, or `open`: nobody can know the answer from such facts."""
    question: str
    answer: str
    """Empty for `open`."""


@dataclass(frozen=True, slots=True)
class SceneCase:
    name: str
    png: bytes
    questions: Sequence[Asked]


@dataclass(slots=True)
class _Canvas:
    image: Image.Image
    ground: str
    taken: list[tuple[int, int, int, int]] = field(default_factory=list)

    @classmethod
    def plain(cls, rng: random.Random, size: tuple[int, int], grounds: Sequence[str]) -> _Canvas:
        ground = rng.choice(grounds)
        return cls(Image.new("RGB", size, _COLORS[ground]), ground)

    def place(self, rng: random.Random, width: int, height: int) -> tuple[int, int] | None:
        """A free place of that size."""
        for _ in range(200):
            left = rng.randint(8, max(8, self.image.width - width - 8))
            top = rng.randint(8, max(8, self.image.height - height - 8))
            box = (left - 8, top - 8, left + width + 8, top + height + 8)
            if all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in self.taken):
                self.taken.append(box)
                return left, top
        return None

    def png(self) -> bytes:
        file = io.BytesIO()
        self.image.save(file, "PNG")
        return file.getvalue()


def scenes(samples: Path, seed: int, count: int) -> list[SceneCase]:
    """`count` scenes, the kinds taking turns. `samples` holds `coffee.png` and `chelsea.png`."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible drawing, no secret
    made: list[SceneCase] = []
    for number in range(count):
        make = _KINDS[number % len(_KINDS)]
        made.append(make(rng, samples, number))
    return made


# --- photographs -------------------------------------------------------------------------------

_CUT_OUTS = {"cup": ("coffee.png", (75, 5, 485, 395)), "cat": ("chelsea.png", (0, 0, 451, 300))}


def _photos(rng: random.Random, samples: Path, number: int) -> SceneCase:
    """One to three cut-outs on a plain ground: the same cup, the same cat, at other sizes and brightness."""
    canvas = _Canvas.plain(
        rng, (rng.choice((720, 840, 960)), rng.choice((540, 600, 720))), ("white", "gray", "blue")
    )
    counts = {"cup": 0, "cat": 0}
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(("cup", "cat"))
        file, box = _CUT_OUTS[name]
        with Image.open(samples / file) as photo:
            cut = photo.convert("RGB").crop(box)
        scale = rng.uniform(0.5, 0.85)
        cut = cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            cut = ImageOps.mirror(cut)
        cut = ImageEnhance.Brightness(cut).enhance(rng.uniform(0.85, 1.15))
        where = canvas.place(rng, *cut.size)
        if where is not None:
            canvas.image.paste(cut, where)
            counts[name] += 1
    there = [name for name, count in counts.items() if count]
    absent = rng.choice(("dog", "bicycle", "banana", "chair"))
    name = rng.choice(there)
    asked = [
        Asked(
            "count",
            rng.choice((f"How many {name}s are there?", f"Count the {name}s in this photo.")),
            str(counts[name]),
        ),
        Asked("yes_no", rng.choice((f"Is there a {name}?", f"Does the image show a {name}?")), "yes"),
        Asked(
            "yes_no",
            rng.choice((f"Can you see a {absent} in the picture?", f"Is there any {absent} here?")),
            "no",
        ),
        Asked(
            "object",
            rng.choice(("What do you see?", "Which objects are in this image?")),
            ", ".join(sorted(there)),
        ),
        Asked("color", "What colour is the background?", canvas.ground),
        Asked("open", f"How old is the {name}?", ""),
    ]
    if counts["cat"]:
        asked.append(Asked("object", "What kind of animal is in the picture?", "cat"))
    if len(there) == 2:
        asked.append(Asked("yes_no", "Are there both a cat and a cup?", "yes"))
    return SceneCase(f"photos-{number}", canvas.png(), asked)


# --- shapes ------------------------------------------------------------------------------------


def _drawing(rng: random.Random, samples: Path, number: int) -> SceneCase:
    canvas = _Canvas.plain(
        rng, (rng.choice((400, 640, 800)), rng.choice((400, 480))), ("white", "yellow", "black")
    )
    colors = [color for color in _COLORS if color != canvas.ground]
    drawn: list[tuple[str, str]] = []
    for _ in range(rng.randint(2, 6)):
        shape, color = rng.choice(_SHAPES), rng.choice(colors)
        side = rng.randint(50, 110)
        width, height = (round(side * 1.7), side) if shape == "rectangle" else (side, side)
        where = canvas.place(rng, width, height)
        if where is not None:
            _draw(canvas.image, shape, _COLORS[color], (*where, where[0] + width, where[1] + height))
            drawn.append((shape, color))
    shape, color = rng.choice(drawn)
    absent_color = rng.choice([c for c in colors if (shape, c) not in drawn])
    of_shape = [c for s, c in drawn if s == shape]
    asked = [
        Asked(
            "count",
            rng.choice((f"How many {shape}s are in the drawing?", f"What is the number of {shape}s?")),
            str(len(of_shape)),
        ),
        Asked("count", "How many shapes can you see?", str(len(drawn))),
        Asked("count", f"How many {color} {shape}s are there?", str(of_shape.count(color))),
        Asked("yes_no", f"Is there a {color} {shape}?", "yes"),
        Asked("yes_no", f"Do you see a {absent_color} {shape}?", "no"),
        Asked(
            "color",
            rng.choice(("What color is the background?", "Which colour does the background have?")),
            canvas.ground,
        ),
        Asked("open", f"Which {shape} was drawn first?", ""),
    ]
    if len(of_shape) == 1:
        asked.append(
            Asked(
                "color",
                rng.choice((f"What colour is the {shape}?", f"Tell me the color of the {shape}.")),
                color,
            )
        )
        asked.append(Asked("yes_no", f"Is the {shape} {color}?", "yes"))
    return SceneCase(f"drawing-{number}", canvas.png(), asked)


def _draw(
    image: Image.Image, shape: str, color: tuple[int, int, int], box: tuple[int, int, int, int]
) -> None:
    """At four times the size, so that edges are smooth as in any drawing program."""
    left, top, right, bottom = (edge * 4 for edge in box)
    mask = Image.new("L", (image.width * 4, image.height * 4))
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=255)
    elif shape == "triangle":
        pen.polygon(((left, bottom), (right, bottom), ((left + right) // 2, top)), fill=255)
    else:
        pen.rectangle((left, top, right, bottom), fill=255)
    image.paste(color, mask=mask.resize(image.size, Image.Resampling.LANCZOS))


# --- texts -------------------------------------------------------------------------------------


def _sign(rng: random.Random, samples: Path, number: int) -> SceneCase:
    ground, ink = rng.choice(
        (("white", "black"), ("yellow", "black"), ("blue", "white"), ("red", "white"), ("green", "white"))
    )
    canvas = _Canvas(
        Image.new("RGB", (rng.choice((420, 640)), rng.choice((200, 300))), _COLORS[ground]), ground
    )
    lines = [" ".join(rng.sample(_WORDS, rng.randint(1, 2))) for _ in range(rng.randint(1, 2))]
    lines = [rng.choice((str.upper, str.title))(line) for line in lines]
    pen, top = ImageDraw.Draw(canvas.image), rng.randint(20, 50)
    size = rng.choice((22, 30, 40))
    for line in lines:
        pen.text((rng.randint(15, 40), top), line, fill=_COLORS[ink], font=ImageFont.load_default(size))
        top += size * 2
    present = rng.choice(lines).split()[0]
    absent = rng.choice([w for w in _WORDS if w not in " ".join(lines).casefold()])
    asked = [
        Asked(
            "text",
            rng.choice(("What does the sign say?", "Please read the text.", "What is written here?")),
            "\n".join(lines),
        ),
        Asked("yes_no", f'Does it say "{present}"?', "yes"),
        Asked("yes_no", f'Does the sign say "{absent}"?', "no"),
        Asked("yes_no", "Is there any text in the image?", "yes"),
        Asked("color", "What is the main colour of the picture?", ground),
        Asked("open", "Who put up this sign?", ""),
    ]
    return SceneCase(f"sign-{number}", canvas.png(), asked)


def _bill(rng: random.Random, samples: Path, number: int) -> SceneCase:
    image = Image.new("RGB", (rng.choice((700, 900)), 640), (255, 255, 255))
    pen, size = ImageDraw.Draw(image), rng.choice((18, 22, 26))
    font, title = ImageFont.load_default(size), ImageFont.load_default(size + 10)
    code = rng.choice(
        (f"{rng.randint(2019, 2026)}-{rng.randint(1000, 9999)}", f"INV-{rng.randint(10000, 99999)}")
    )
    prices = [rng.randint(500, 90000) for _ in range(rng.randint(2, 3))]
    sign = rng.choice(("$", "USD ", "EUR "))
    money: Callable[[int], str] = lambda cents: f"{sign}{cents // 100:,}.{cents % 100:02d}"  # noqa: E731
    date = rng.choice((
        f"{rng.randint(2023, 2026)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
        f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(2023, 2026)}",
    ))  # fmt: skip
    tax = sum(prices) // 5
    total = money(sum(prices) + tax)
    pen.text(
        (30, 20), rng.choice((f"Invoice No. {code}", f"INVOICE #{code}", f"Invoice number: {code}")), 0, title
    )
    pen.text((30, 80), f"Date: {date}", 0, font)
    rows = [(f"{rng.choice(_WORDS).title()} {n}", money(price)) for n, price in enumerate(prices, 1)]
    rows += [
        ("Subtotal", money(sum(prices))),
        ("VAT 20%", money(tax)),
        (rng.choice(("Total", "TOTAL", "Amount due")), total),
    ]
    for at, (name, price) in enumerate(rows):
        pen.text((30, 140 + at * 60), name, 0, font)
        pen.text((image.width - 220, 140 + at * 60), price, 0, font)
    file = io.BytesIO()
    image.save(file, "PNG")
    asked = [
        Asked(
            "text", rng.choice(("What is the invoice number?", "Which number does this invoice have?")), code
        ),
        Asked(
            "text",
            rng.choice(("What is the total?", "How much has to be paid?", "What is the total amount due?")),
            total,
        ),
        Asked("text", rng.choice(("What is the date?", "What date is on the invoice?")), date),
        Asked("yes_no", 'Does it say "Subtotal"?', "yes"),
        Asked("open", "Has this invoice been paid on time?", ""),
    ]
    return SceneCase(f"bill-{number}", file.getvalue(), asked)


_KINDS = (_photos, _drawing, _sign, _bill)
