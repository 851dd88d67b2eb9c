"""Phonemes of Spanish, French, Italian, Portuguese and Hindi from `espeak-ng`, a program of its own (GPL-3).

It is never part of InferHub or linked to it: where it is installed it is run, without a shell, once a clause.
Called in a thread.
"""

# Signs of other scripts and of phonetics are what this is about.
# ruff: noqa: RUF001

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Mapping

from inferhub.backends.speaking.voices import plain_language
from inferhub.core.errors import Invalid, SetupError, UpstreamFailed

PROGRAM = "espeak-ng"
TIME_LIMIT_S = 10.0

_VOICES: Mapping[str, str] = {"es": "es", "fr": "fr-fr", "it": "it", "pt": "pt-br", "hi": "hi"}
_REGIONAL: Mapping[str, str] = {"es-419": "es-419", "es-mx": "es-419", "pt-pt": "pt"}
_MARK = re.compile(r"\s*([;:,.!?…—–]+[\"'”’»)\]]*(?=\s|$)|[«»“”\"()¡¿]+)\s*")
_SPOKEN_MARKS = ';:,.!?…—"“”()'
_SWITCH = re.compile(r"\([a-z]{2,3}(?:-[a-z0-9]+)*\)")
"""The program notes where it takes a word for one of another language."""
_SYMBOLS = (
    ("a^ɪ", "I"),
    ("a^ʊ", "W"),
    ("d^z", "ʣ"),
    ("d^ʒ", "ʤ"),
    ("e^ɪ", "A"),
    ("o^ʊ", "O"),
    ("ə^ʊ", "Q"),
    ("s^s", "S"),
    ("t^s", "ʦ"),
    ("t^ʃ", "ʧ"),
    ("ɔ^ɪ", "Y"),
    ("^", ""),
    ("-", ""),
    ("_", " "),
)
"""The program's pairs of sounds → the single symbols that Kokoro was trained on."""


def phonemes(text: str, tag: str) -> str:
    """With the punctuation of `text`, which the voice needs for its melody."""
    voice = _REGIONAL.get(tag.lower()) or _VOICES.get(plain_language(tag))
    if voice is None:
        raise Invalid(f"Nobody here reads {tag!r}.", param="language")
    parts = _MARK.split(_harmless(text))
    said = iter(_read([part for part in parts[::2] if part.strip()], voice))
    found = ""
    for index, part in enumerate(parts):
        if index % 2:
            found = _joined(found, part)
        elif part.strip():
            found += next(said) + " "
    return " ".join(found.split())


def _joined(before: str, mark: str) -> str:
    """A mark stands at the word that it belongs to."""
    known = "".join(
        sign for sign in mark.replace("–", "—").replace("«", "“").replace("»", "”") if sign in _SPOKEN_MARKS
    )
    opens = known in ("(", "“")
    return f"{before}{known}" if opens else f"{before.rstrip()}{known} "


def _harmless(text: str) -> str:
    """Without what the program takes for orders: control characters and `[[`."""
    plain = "".join(" " if unicodedata.category(sign) in ("Cc", "Cs", "Co", "Cn") else sign for sign in text)
    return plain.replace("[[", "[ [").replace("]]", "] ]")


def _read(lines: list[str], voice: str) -> list[str]:
    """The phonemes of each line."""
    if not lines:
        return []
    found = _run("\n".join(lines), voice)
    if len(found) == len(lines):
        return found
    # A line that is long comes back as several.
    return [" ".join(_run(line, voice)) for line in lines]


def _run(text: str, voice: str) -> list[str]:
    command = [_program(), "-q", "--ipa", "--tie=^", "-b", "1", "-v", voice]
    try:
        done = subprocess.run(
            command, input=f"{text}\n".encode(), capture_output=True, timeout=TIME_LIMIT_S, check=True, env={}
        )
    except subprocess.TimeoutExpired as error:
        raise UpstreamFailed(f"{PROGRAM} took longer than {TIME_LIMIT_S:g} s to read a clause.") from error
    except (OSError, subprocess.CalledProcessError) as error:
        raise UpstreamFailed(f"{PROGRAM} could not read a clause.") from error
    lines = done.stdout.decode(errors="replace").splitlines()
    return [_in_kokoros_alphabet(line) for line in lines if line.strip()]


def _in_kokoros_alphabet(line: str) -> str:
    said = _SWITCH.sub("", line)
    for given, wanted in _SYMBOLS:
        said = said.replace(given, wanted)
    return " ".join(said.split())


@functools.cache
def _found() -> str | None:
    return shutil.which(PROGRAM)


def _program() -> str:
    path = _found()
    if path is None:
        _found.cache_clear()  # it may be installed while we run
        raise SetupError(
            f"This language needs the program {PROGRAM!r}, which is not installed here: "
            f"`apt-get install {PROGRAM}`, or the package of that name of your system.",
            param="language",
            code="phonemizer_missing",
        )
    return path
