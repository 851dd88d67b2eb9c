"""What a request for speech means: voices, aliases, blends, presets, languages, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from inferhub.backends.hibari import Hibari
from inferhub.backends.kokoro import Kokoro
from inferhub.backends.speaking.moods import MOODS
from inferhub.backends.speaking.plan import Plan, make_plan
from inferhub.backends.speaking.voices import KOKORO_16, KOKORO_54, OPENAI_VOICES, Choir, kokoro_voices
from inferhub.core.errors import Invalid
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope
from inferhub.modalities.speech import EMOTIONS, MODALITY, SpeechDelta, SpeechRequest, emotion_of, shares

CHOIR = Choir(kokoro_voices(KOKORO_16))


def asked(**fields: Any) -> SpeechRequest:
    body = msgspec.json.encode({"input": "Hello.", **fields})
    request = msgspec.json.decode(body, type=SpeechRequest)
    MODALITY.check(request)
    return request


def plan(**fields: Any) -> Plan:
    return make_plan(asked(**fields), CHOIR, Kokoro.languages, can_blend=True)


# --- voices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voice", "blend"),
    [
        ("am_puck", {"am_puck": 1}),
        ({"id": "am_puck"}, {"am_puck": 1}),
        ("af_heart+am_michael", {"af_heart": 0.5, "am_michael": 0.5}),
        ("af_heart:3 + am_michael:1", {"af_heart": 0.75, "am_michael": 0.25}),
        ({"af_heart": 0.7, "am_michael": 0.3}, {"af_heart": 0.7, "am_michael": 0.3}),
        ({"af_heart": 7, "am_michael": 3, "am_puck": 0}, {"af_heart": 0.7, "am_michael": 0.3}),
        ({"alloy": 1, "af_heart": 1}, {"af_heart": 1}),
        ("default", {"af_heart": 1}),
        ("onyx", {"am_michael": 1}),
        ("Onyx", {"am_michael": 1}),
    ],
)
def test_a_voice_may_be_named_in_many_ways(voice: Any, blend: dict[str, float]) -> None:
    assert plan(voice=voice).blend == pytest.approx(blend)


@pytest.mark.parametrize(
    "voice",
    ["", "+", "a+", "af_heart:x", "af_heart:-1", "af_heart:nan", {}, {"af_heart": -1}, {"af_heart": 0},
     {"af_heart": "much", "am_puck": 1}, {f"v{n}": 1 for n in range(9)}, "a b\n" * 200],
)  # fmt: skip
def test_what_names_nobody_is_refused_at_the_door(voice: Any) -> None:
    with pytest.raises(Invalid) as caught:
        asked(voice=voice)
    assert caught.value.param == "voice"


def test_an_unknown_voice_is_told_all_names() -> None:
    with pytest.raises(Invalid) as caught:
        plan(voice="nobody")
    assert (caught.value.param, caught.value.wire_code) == ("voice", "unknown_voice")
    assert all(name in caught.value.message for name in (*KOKORO_16, *OPENAI_VOICES))


def test_every_name_of_openai_means_a_voice_of_each_engine() -> None:
    names = {
        "alloy",
        "ash",
        "ballad",
        "coral",
        "echo",
        "fable",
        "nova",
        "onyx",
        "sage",
        "shimmer",
        "verse",
        "marin",
        "cedar",
    }
    assert set(OPENAI_VOICES) == names
    assert set(OPENAI_VOICES.values()) <= set(KOKORO_16)
    for backend in (Hibari, Kokoro):
        [capability] = backend.offers(ModelSpec("m", "any"))
        assert names == {alias for voice in capability.voices for alias in voice.aliases} - {"af_heart"}


def test_all_voices_are_known_before_the_model_is_loaded() -> None:
    [few] = Kokoro.offers(ModelSpec("m", "kokoro"))
    [all_of_them] = Kokoro.offers(ModelSpec("m", "kokoro", options={"voices": "kokoro-voices-all"}))
    assert [voice.id for voice in few.voices] == list(KOKORO_16)
    assert len(set(KOKORO_54)) == len(all_of_them.voices) == 54
    assert set(KOKORO_16) < set(KOKORO_54)
    emma = next(voice for voice in few.voices if voice.id == "bf_emma")
    assert (emma.language, emma.gender, emma.aliases) == ("en-GB", "female", ("sage",))


# --- languages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "voice", "language"),
    [
        ({}, "af_heart", "en-US"),
        ({"voice": "bf_emma"}, "bf_emma", "en-GB"),
        ({"voice": "ef_dora"}, "ef_dora", "es-ES"),
        ({"language": "fr"}, "ff_siwis", "fr-FR"),
        ({"language": "pt-BR"}, "pf_dora", "pt-BR"),
        ({"language": "en", "voice": "bf_emma"}, "bf_emma", "en-GB"),
        ({"language": "en", "voice": "ef_dora"}, "ef_dora", "en"),
        ({"language": "en-GB"}, "bf_emma", "en-GB"),
    ],
)
def test_text_is_read_in_the_language_of_its_voice_or_as_asked(
    fields: dict[str, Any], voice: str, language: str
) -> None:
    found = plan(**fields)
    assert (list(found.blend), found.language) == ([voice], language)


def test_a_language_that_nobody_speaks_is_refused() -> None:
    with pytest.raises(Invalid) as caught:
        plan(language="ko")
    assert caught.value.param == "language"
    assert "es, fr, hi, it, ja, pt, zh" in caught.value.message


# --- presets -----------------------------------------------------------------------------------


def test_every_emotion_has_a_preset_and_only_neutral_changes_nothing() -> None:
    assert tuple(MOODS) == EMOTIONS
    plain = plan(emotion="neutral")
    assert plain == plan()
    for emotion in EMOTIONS[1:]:
        assert plan(emotion=emotion) != plain


def test_a_preset_adds_to_what_was_asked_for_and_stays_within_bounds() -> None:
    found = plan(emotion="angry", speed=4, pitch=12, gain_db=20)
    assert found.effects.speed == 4
    assert found.effects.pitch_semitones == 12 + MOODS["angry"].pitch_semitones
    assert plan(speed=0.25).effects.speed == 0.25
    assert plan(speed=0.25, emotion="sad").effects.speed == 0.25


def test_a_preset_leans_to_a_voice_only_in_english_and_only_where_voices_blend() -> None:
    assert plan(emotion="whisper").blend == pytest.approx({"af_heart": 0.4, "af_nicole": 0.6})
    assert plan(emotion="whisper", voice="ef_dora").blend == {"ef_dora": 1}
    request = asked(emotion="whisper")
    assert make_plan(request, CHOIR, Kokoro.languages, can_blend=False).blend == {"af_heart": 1}


@pytest.mark.parametrize(
    ("instructions", "emotion"),
    [
        ("Speak in a cheerful and positive tone.", "happy"),
        ("Whisper, please", "whisper"),
        ("Sound ANGRY!", "angry"),
        ("Do not sound angry; be calm.", "calm"),
        ("never be too sad", None),
        ("Speak like a pirate.", None),
        ("A crusader's saddle", None),
        ("", None),
    ],
)
def test_instructions_are_understood_where_they_name_a_mood(instructions: str, emotion: str | None) -> None:
    assert emotion_of(asked(instructions=instructions)) == emotion
    assert emotion_of(asked(instructions=instructions, emotion="sad")) == "sad"


def test_instructions_that_a_model_cannot_follow_are_a_wish_that_is_reported() -> None:
    assert MODALITY.wishes is not None
    assert MODALITY.wishes(asked()) == {}
    assert MODALITY.wishes(asked(instructions="Like a pirate"))["instructions"] == {"instructions"}
    assert "emotion" in MODALITY.wishes(asked(instructions="sadly"))["instructions"]


# --- the record --------------------------------------------------------------------------------


def test_4096_characters_are_allowed_and_one_more_is_not() -> None:
    asked(input="é" * 4096)
    with pytest.raises(Invalid) as caught:
        asked(input="é" * 4097)
    assert caught.value.param == "input"


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_blank_input_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        asked(input=text)
    assert caught.value.param == "input"


@pytest.mark.parametrize(
    "field", [{"speed": 0.24}, {"speed": 4.1}, {"pitch": 13}, {"response_format": "ogg"}]
)
def test_ranges_are_checked(field: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        asked(**field)


def test_what_only_some_models_can_do_is_required() -> None:
    assert MODALITY.requires(asked(language="en", voice={"id": "x"}, instructions="x")) == {}
    needed = MODALITY.requires(
        asked(language="es", pitch=1, gain_db=1, emotion="sad", voice="a+b", sample_rate_hz=8000)
    )
    assert needed == {
        "language": "language",
        "pitch": "pitch",
        "gain": "gain_db",
        "emotion": "emotion",
        "blend": "voice",
        "sample_rate": "sample_rate_hz",
    }
    assert set(needed) <= set(MODALITY.features)
    assert shares(asked()) == {"default": 1}


def test_the_two_writers() -> None:
    assert MODALITY.writer is not None
    assert MODALITY.media_type is not None
    envelope = Envelope("speech-1", 0, "m")
    plain = MODALITY.writer(asked(), envelope)
    assert plain.delta(SpeechDelta(b"\xff\xfb")) + plain.end(Usage()) == b"\xff\xfb"
    events = MODALITY.writer(asked(stream_format="sse"), envelope)
    assert events.delta(SpeechDelta(b"abc")) == b'data: {"type":"speech.audio.delta","audio":"YWJj"}\n\n'
    assert events.delta(SpeechDelta(b"")) == b""
    end = msgspec.json.decode(events.end(Usage(characters=5, audio_ms=700)).removeprefix(b"data: "))
    assert end["type"] == "speech.audio.done"
    assert end["usage"] == {
        "input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "characters": 5, "audio_ms": 700,
    }  # fmt: skip
    assert MODALITY.media_type(asked(response_format="pcm", sample_rate_hz=16000), True) == (
        "audio/pcm; rate=16000; channels=1"
    )
