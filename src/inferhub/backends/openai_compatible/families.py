"""What kinds of models hear, speak and paint behind OpenAI's API, and what each kind can do.

Read when a model is loaded, and by the writer of its requests. A kind follows from the model's name, unless
its operator says it; of a name that tells nothing, only what every such server does is assumed.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

Kind = Literal["transcription", "speech", "image"]
Name = Literal[
    "whisper", "gpt-transcribe", "gpt-diarize", "some-transcriber",
    "tts", "gpt-tts", "some-voice",
    "dall-e-2", "dall-e-3", "gpt-image", "some-painter",
    "inferhub",
]  # fmt: skip


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of model. Only fields of its own modality matter."""

    features: frozenset[str]
    is_ours: bool = False
    """Another InferHub: what it can do it says itself, by refusing the rest."""
    has_times: bool = False
    """Transcripts: whether `verbose_json` exists, with the times of segments."""
    has_events: bool = False
    """Whether it streams events: of a text, of sound, of pictures."""
    voices: tuple[str, ...] = ()
    is_encoded: bool = False
    """Pictures: always enclosed, and `response_format` refused; others are told to enclose them."""


_VOICES = ("alloy", "ash", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer")
_ALL_HEARD = frozenset({"stream", "translate", "diarize", "word_timestamps"})
_PAINTED = frozenset({"stream", "generate"})

FAMILIES: dict[Kind, dict[str, Family]] = {
    "transcription": {
        # Streams are refused or ignored by Whisper; its whole transcript is streamed here.
        "whisper": Family(features=_ALL_HEARD - {"diarize"}, has_times=True),
        "gpt-transcribe": Family(features=frozenset({"stream"}), has_events=True),
        "gpt-diarize": Family(features=frozenset({"stream", "diarize"}), has_events=True),
        "some-transcriber": Family(features=_ALL_HEARD - {"diarize"}, has_times=True),
        "inferhub": Family(features=frozenset(), is_ours=True, has_times=True, has_events=True),
    },
    "speech": {
        "tts": Family(features=frozenset({"stream"}), voices=_VOICES),
        "gpt-tts": Family(
            features=frozenset({"stream", "instructions"}),
            has_events=True,
            voices=(*_VOICES, "ballad", "verse", "marin", "cedar"),
        ),
        "some-voice": Family(features=frozenset({"stream"})),
        "inferhub": Family(features=frozenset(), is_ours=True, has_events=True),
    },
    "image": {
        "dall-e-2": Family(features=_PAINTED | {"edit", "variation", "mask", "n"}),
        "dall-e-3": Family(features=_PAINTED | {"quality", "style"}),
        "gpt-image": Family(
            features=_PAINTED
            | {"edit", "mask", "n", "transparent", "quality", "moderation", "input_fidelity"},
            has_events=True,
            is_encoded=True,
        ),
        "some-painter": Family(features=_PAINTED | {"n"}),
        "inferhub": Family(features=frozenset(), is_ours=True, has_events=True),
    },
}
_NAMES: tuple[tuple[str, Kind, Name], ...] = (
    (r"transcribe-diarize", "transcription", "gpt-diarize"),
    (r"^gpt-.*transcribe", "transcription", "gpt-transcribe"),
    (r"whisper", "transcription", "whisper"),
    (r"transcribe|voxtral|parakeet", "transcription", "some-transcriber"),
    (r"^gpt-.*-tts", "speech", "gpt-tts"),
    (r"^tts-1", "speech", "tts"),
    (r"(^|[-_/])tts([-_/]|$)|orpheus|kokoro|(^|/)sonic", "speech", "some-voice"),
    (r"^dall-e-2", "image", "dall-e-2"),
    (r"^dall-e-3", "image", "dall-e-3"),
    (r"^gpt-image|^chatgpt-image", "image", "gpt-image"),
    (r"-image|flux|stable-diffusion|^imagen", "image", "some-painter"),
)
_BY_NAME = tuple((re.compile(pattern), kind, name) for pattern, kind, name in _NAMES)
_UNKNOWN: dict[Kind, Name] = {
    "transcription": "some-transcriber",
    "speech": "some-voice",
    "image": "some-painter",
}


def kind_of(model: str, family: str | None = None) -> Kind | None:
    """What a model of this family or with this name is for; None for language, or where neither says."""
    kinds = [kind for kind, families in FAMILIES.items() if family in families]
    if len(kinds) == 1:
        return kinds[0]
    found = _by_name(model)
    return found[0] if found else None


def family_of(kind: Kind, model: str, given: str | None) -> Family:
    """`given` is what the operator or the vendor's row says."""
    families = FAMILIES[kind]
    if given in families:
        return families[given]
    found = _by_name(model)
    return families[found[1] if found is not None and found[0] == kind else _UNKNOWN[kind]]


def _by_name(model: str) -> tuple[Kind, Name] | None:
    name = model.lower()
    return next(((kind, family) for pattern, kind, family in _BY_NAME if pattern.search(name)), None)
