"""Phonemes of Japanese and Chinese, from optional packages with permissive licences. Called in a thread.

Japanese: misaki (Apache-2.0) over pyopenjtalk-plus (MIT, its dictionary BSD). Chinese: misaki over jieba,
pypinyin and cn2an (MIT). None of them opens a socket once it is installed.
"""

# Signs of other scripts and of phonetics are what this is about.
# ruff: noqa: RUF001

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

from inferhub.core.errors import SetupError

_lock = threading.Lock()
"""Dictionaries are not said to be safe for several threads."""

# What the readers write and Kokoro's alphabet has otherwise.
_SYMBOLS = str.maketrans(
    {"g": "ɡ", "ʐ": "ɻ", "K": "kw", "G": "ɡw", "、": ",", "。": ".", "！": "!", "？": "?"}
    | dict(zip("ᶄᶃƫᶁᶀᶈᶆᶉ", ("kʲ", "ɡʲ", "tʲ", "dʲ", "bʲ", "pʲ", "mʲ", "rʲ"), strict=True))
)


def phonemes(text: str, language: str) -> str:
    """Raises `SetupError` with the package to install."""
    with _lock:
        said = _reader(language)(" ".join(text.split()))
    return said.translate(_SYMBOLS)


@functools.cache
def _reader(language: str) -> Callable[[str], str]:
    return _japanese() if language == "ja" else _chinese()


def _japanese() -> Callable[[str], str]:
    try:
        from misaki.ja import JAG2P
    except ImportError as error:
        raise _missing("Japanese", "inferhub[japanese]", error) from error
    reader = JAG2P(version="pyopenjtalk")

    def read(text: str) -> str:
        said: str = reader(text)[0]
        # The second half says how high each symbol of the first one is, for later models than ours.
        return said[: len(said) // 2]

    return read


def _chinese() -> Callable[[str], str]:
    import logging

    try:
        import jieba
        from misaki.zh import ZHG2P
    except ImportError as error:
        raise _missing("Chinese", "inferhub[chinese]", error) from error
    jieba.setLogLevel(logging.WARNING)
    reader = ZHG2P()

    def read(text: str) -> str:
        said: str = reader(text)[0]
        return said

    return read


def _missing(language: str, extra: str, error: ImportError) -> SetupError:
    return SetupError(
        f"{language} needs the package {error.name!r}, which is not installed here: `pip install '{extra}'`.",
        param="language",
        code="phonemizer_missing",
    )
