"""Who can speak: the voices of an engine, the names that OpenAI's clients use for them, and blends. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from inferhub.core.errors import Invalid
from inferhub.core.models import Voice
from inferhub.modalities.speech import DEFAULT_VOICE, SpeechRequest, shares

OPENAI_VOICES: Mapping[str, str] = {
    "alloy": "af_heart",
    "ash": "am_michael",
    "ballad": "bm_george",
    "cedar": "am_michael",
    "coral": "af_bella",
    "echo": "am_puck",
    "fable": "bm_george",
    "marin": "af_heart",
    "nova": "af_bella",
    "onyx": "am_michael",
    "sage": "bf_emma",
    "shimmer": "af_nicole",
    "verse": "am_puck",
}
"""OpenAI's name → the voice of Kokoro that is nearest in gender and character; none of them is the same."""

_FEW = """
af_heart af_bella af_nicole am_michael am_puck bf_emma bm_george ef_dora em_alex ff_siwis if_sara
im_nicola jf_alpha pf_dora zf_xiaoxiao zm_yunxi
"""
_ALL = """
af_heart af_alloy af_aoede af_bella af_jessica af_kore af_nicole af_nova af_river af_sarah af_sky
am_michael am_adam am_echo am_eric am_fenrir am_liam am_onyx am_puck am_santa bf_emma bf_alice bf_isabella
bf_lily bm_george bm_daniel bm_fable bm_lewis ef_dora em_alex em_santa ff_siwis hf_alpha hf_beta hm_omega
hm_psi if_sara im_nicola jf_alpha jf_gongitsune jf_nezumi jf_tebukuro jm_kumo pf_dora pm_alex pm_santa
zf_xiaoxiao zf_xiaobei zf_xiaoni zf_xiaoyi zm_yunxi zm_yunjian zm_yunxia zm_yunyang
"""
KOKORO_16 = tuple(_FEW.split())
KOKORO_54 = tuple(_ALL.split())
"""The first of each language speaks where nobody is named."""

_LANGUAGES = {
    "a": "en-US",
    "b": "en-GB",
    "e": "es-ES",
    "f": "fr-FR",
    "h": "hi-IN",
    "i": "it-IT",
    "j": "ja-JP",
    "p": "pt-BR",
    "z": "zh-CN",
}
_GENDERS: Mapping[str, Literal["female", "male"]] = {"f": "female", "m": "male"}


def kokoro_voices(names: Iterable[str]) -> tuple[Voice, ...]:
    """Names such as `bf_emma` as voices: the first letter is the language, the second the gender."""
    return tuple(
        Voice(
            name,
            _LANGUAGES[name[0]],
            _GENDERS[name[1]],
            tuple(alias for alias, voice in OPENAI_VOICES.items() if voice == name),
        )
        for name in names
    )


def plain_language(tag: str) -> str:
    """`pt` of `pt-BR`."""
    return tag.replace("_", "-").partition("-")[0].lower()


class Choir:
    """The voices of one model."""

    def __init__(self, voices: Sequence[Voice]) -> None:
        self.voices = tuple(voices)
        self._by_name = {alias: v for v in voices for alias in v.aliases} | {v.id: v for v in voices}

    def blend(self, request: SpeechRequest) -> dict[Voice, float]:
        """The voices that were asked for, with their shares. Raises `Invalid` with all names."""
        found: dict[Voice, float] = {}
        for name, share in shares(request).items():
            voice = self.default(request.language) if name == DEFAULT_VOICE else self.find(name)
            found[voice] = found.get(voice, 0.0) + share
        return found

    def find(self, name: str) -> Voice:
        voice = self._by_name.get(name) or self._by_name.get(name.lower())
        if voice is None:
            names = ", ".join(v.id for v in self.voices)
            aliases = ", ".join(sorted(a for v in self.voices for a in v.aliases))
            raise Invalid(
                f"'voice' {name[:60]!r} is not one of this model's: {names}; also known as: {aliases}.",
                param="voice",
                code="unknown_voice",
            )
        return voice

    def default(self, language: str | None = None) -> Voice:
        """The first that speaks the language; the first of all where nobody does or none is named."""
        if language is None:
            return self.voices[0]
        exact = language.replace("_", "-").lower()
        plain = plain_language(language)
        return next(
            (v for v in self.voices if v.language.lower() == exact),
            next((v for v in self.voices if plain_language(v.language) == plain), self.voices[0]),
        )
