"""What a request means for an engine, decided before a word is spoken: blend, language, effects. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inferhub.backends.speaking.moods import MOODS, Mood
from inferhub.backends.speaking.voices import Choir, plain_language
from inferhub.core.errors import Invalid
from inferhub.core.models import Voice
from inferhub.media import Effects
from inferhub.modalities.speech import AudioFormat, SpeechRequest, emotion_of

_SPEED = (0.25, 4.0)
_PITCH = (-24.0, 24.0)
_GAIN_DB = (-40.0, 40.0)


@dataclass(frozen=True, slots=True)
class Plan:
    blend: Mapping[str, float]
    language: str
    """IETF tag of the text, such as `en-GB`."""
    effects: Effects
    """The rate among them: engines round the length of each sound, so that 1.12 may change nothing there."""
    format: AudioFormat
    sample_rate_hz: int | None


def make_plan(request: SpeechRequest, choir: Choir, languages: frozenset[str], *, can_blend: bool) -> Plan:
    """Raises `Invalid`, such as for an unknown voice."""
    blend = choir.blend(request)
    loudest = max(blend, key=lambda voice: blend[voice])
    language = _language(request, loudest, languages)
    mood = MOODS[emotion_of(request) or "neutral"]
    if can_blend and plain_language(language) == "en":
        blend = _leaning(blend, loudest, mood, choir)
    effects = Effects(
        pitch_semitones=_within((request.pitch or 0.0) + mood.pitch_semitones, _PITCH),
        speed=_within(request.speed * mood.speed, _SPEED),
        gain_db=_within((request.gain_db or 0.0) + mood.gain_db, _GAIN_DB),
    )
    shares = {voice.id: share for voice, share in blend.items()}
    return Plan(shares, language, effects, request.response_format, request.sample_rate_hz)


def _language(request: SpeechRequest, voice: Voice, languages: frozenset[str]) -> str:
    if request.language is None:
        return voice.language
    plain = plain_language(request.language)
    if plain not in languages:
        raise Invalid(
            f"This model does not speak {request.language!r}; it speaks {', '.join(sorted(languages))}.",
            param="language",
        )
    # The voice knows which English it speaks, where the client does not say.
    is_same = plain == plain_language(voice.language) and len(request.language) == len(plain)
    return voice.language if is_same else request.language.replace("_", "-")


def _leaning(blend: dict[Voice, float], loudest: Voice, mood: Mood, choir: Choir) -> dict[Voice, float]:
    name, share = mood.lean.get(loudest.gender, ("", 0.0))
    towards = next((voice for voice in choir.voices if voice.id == name), None)
    if towards is None:
        return blend
    leaning = {voice: own * (1 - share) for voice, own in blend.items()}
    leaning[towards] = leaning.get(towards, 0.0) + share
    return leaning


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
