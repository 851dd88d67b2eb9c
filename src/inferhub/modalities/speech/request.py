"""What a client wants spoken: `POST /v1/audio/speech`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from inferhub.core.errors import Invalid

AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
Emotion = Literal["neutral", "happy", "sad", "angry", "calm", "whisper"]
EMOTIONS: tuple[Emotion, ...] = get_args(Emotion)
MAX_INPUT_CHARS = 4096
MAX_INSTRUCTIONS_CHARS = 4096
MAX_VOICES = 8
"""In one blend."""
DEFAULT_VOICE = "default"

_LANGUAGE = re.compile(r"[a-zA-Z]{2,3}([-_][a-zA-Z]{2,4})?")
_PLAIN_VOICE = re.compile(r"[^\s+:][^+:]{0,99}")


class SpeechRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/audio/speech`."""

    input: str
    model: str = ""
    voice: str | dict[str, str | float] = DEFAULT_VOICE
    """A name, `{"id": name}`, or names with their shares: those voices are blended."""
    instructions: str | None = None
    response_format: AudioFormat = "mp3"
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    # Beyond OpenAI's:
    language: str | None = None
    """ISO 639-1; that of the voice where it is not said."""
    emotion: Emotion | None = None
    pitch: Annotated[float, Meta(ge=-12, le=12)] | None = None
    """Semitones."""
    gain_db: Annotated[float, Meta(ge=-30, le=20)] | None = None
    sample_rate_hz: Annotated[int, Meta(ge=8000, le=48_000)] | None = None

    @property
    def stream(self) -> bool:
        """Sound leaves as it is made, whatever its form."""
        return True


def check(request: SpeechRequest) -> None:
    """Raises `Invalid`."""
    if not request.input.strip():
        raise Invalid("'input' is empty; send at least one word.", param="input")
    if len(request.input) > MAX_INPUT_CHARS:
        raise Invalid(
            f"'input' has {len(request.input)} characters; at most {MAX_INPUT_CHARS} are allowed.",
            param="input",
            code="string_above_max_length",
        )
    if request.instructions is not None and len(request.instructions) > MAX_INSTRUCTIONS_CHARS:
        raise Invalid(
            f"'instructions' has {len(request.instructions)} characters; at most {MAX_INSTRUCTIONS_CHARS} "
            "are allowed.",
            param="instructions",
            code="string_above_max_length",
        )
    if request.language is not None and not _LANGUAGE.fullmatch(request.language):
        raise Invalid("'language' is a code of ISO 639-1, such as 'en' or 'pt-BR'.", param="language")
    shares(request)


def shares(request: SpeechRequest) -> Mapping[str, float]:
    """Voice → its share of the blend; they add up to 1. Raises `Invalid`.

    Written `af_heart`, `af_heart+am_michael` (equal shares), `af_heart:0.7+am_michael:0.3`, or as an object.
    """
    weights: dict[str, float] = {}
    for name, weight in _named(request.voice):
        if not _PLAIN_VOICE.fullmatch(name):
            raise Invalid(f"'voice' has a name that cannot be one: {name[:40]!r}.", param="voice")
        if not 0 <= weight <= 1_000_000:
            raise Invalid("'voice' has a share that is not a positive number.", param="voice")
        weights[name] = weights.get(name, 0.0) + weight
    total = sum(weights.values())
    if not total > 0:
        raise Invalid("'voice' names nobody; send a name, or names with their shares.", param="voice")
    if len(weights) > MAX_VOICES:
        raise Invalid(
            f"'voice' blends {len(weights)} voices; at most {MAX_VOICES} are allowed.", param="voice"
        )
    return {name: weight / total for name, weight in weights.items() if weight}


def _named(voice: str | dict[str, str | float]) -> Iterator[tuple[str, float]]:
    if isinstance(voice, str):
        yield from _parts(voice)
        return
    name = voice.get("id")
    if isinstance(name, str) and len(voice) == 1:
        yield name, 1.0
        return
    for name, share in voice.items():
        if isinstance(share, str):
            raise Invalid(f"'voice' gives {name[:40]!r} a share that is no number.", param="voice")
        yield name, share


def _parts(text: str) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for part in text.split("+"):
        name, mark, share = part.strip().partition(":")
        try:
            found.append((name.strip(), float(share) if mark else 1.0))
        except ValueError:
            raise Invalid(
                f"'voice' gives {name[:40]!r} a share that is no number: {share[:20]!r}.", param="voice"
            ) from None
    return found


_WORDS: Mapping[Emotion, str] = {
    "happy": r"happ(?:y|ily|ier)|cheerful(?:ly)?|joy(?:ful|fully|ous)?|excited(?:ly)?|enthusiastic(?:ally)?",
    "sad": r"sad(?:ly|der)?|sorrowful(?:ly)?|melanchol(?:y|ic)|gloomy|mournful(?:ly)?",
    "angry": r"ang(?:ry|rily|er)|furious(?:ly)?|irritated|annoyed",
    "calm": r"calm(?:ly|er|ing)?|relaxed|soothing(?:ly)?|serene(?:ly)?|peaceful(?:ly)?",
    "whisper": r"whisper(?:s|ed|ing|y)?|hushed|softly",
    "neutral": r"neutral(?:ly)?|matter-of-fact(?:ly)?",
}
_WORD = re.compile("|".join(rf"(?P<{name}>\b(?:{words})\b)" for name, words in _WORDS.items()), re.IGNORECASE)
_DENIED = re.compile(
    r"(?:\bnot|\bnever|\bwithout|\bless|\bdon't|\bisn't|n't sound|\bno)(?:\s+\w+){0,2}\s*$", re.I
)


def emotion_of(request: SpeechRequest) -> Emotion | None:
    """The one that is asked for, else the first one that the instructions name and do not deny."""
    if request.emotion is not None or request.instructions is None:
        return request.emotion
    for found in _WORD.finditer(request.instructions):
        if not _DENIED.search(request.instructions[: found.start()]):
            return found.lastgroup  # type: ignore[return-value]  # the groups are named after them
    return None
