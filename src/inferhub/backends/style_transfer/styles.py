"""The 26 built-in styles by name. Their network numbers them only; the names say what they look like."""

from __future__ import annotations

import re

from inferhub.core.errors import Invalid

STYLES = (
    "fresco", "outline", "ink", "shards", "ochre", "ember", "peacock", "neon", "pop", "camouflage", "clay",
    "parchment", "pastel", "jungle", "mist", "glass", "crayon", "weave", "sepia", "starry", "crimson",
    "cutout", "slate", "dusk", "woodblock", "oil",
)  # fmt: skip
"""In the order of their numbers, which start at 0."""

_WORD = re.compile(r"[a-z]+|[0-9]+")


def listing() -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(STYLES))


def chosen(style: str | None, prompt: str) -> int:
    """The number of the style that `style` is, or else that `prompt` mentions. Raises `Invalid` with all."""
    if style is not None:
        number = _number(style.strip().casefold())
        if number is None:
            raise Invalid(f"'style' is {style[:64]!r}; the styles are: {listing()}.", param="style")
        return number
    mentioned = {n for word in _WORD.findall(prompt.casefold()) if (n := _number(word)) is not None}
    if len(mentioned) == 1:
        return mentioned.pop()
    problem = "mentions several styles" if mentioned else "names no style"
    raise Invalid(
        f"'prompt' {problem}. Name one in 'style' or in the prompt, or send a second 'image' as the style. "
        f"The styles are: {listing()}.",
        param="prompt",
    )


def _number(word: str) -> int | None:
    if word in STYLES:
        return STYLES.index(word)
    if word.isascii() and word.isdigit() and int(word[:6]) < len(STYLES):
        return int(word)
    return None
