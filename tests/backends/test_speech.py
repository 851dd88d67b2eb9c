"""hibari and Kokoro themselves: files, streams, voices, moods, odd texts, cancellation."""

# Signs of other scripts and of phonetics are what this is about.
# ruff: noqa: RUF001

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferhub.backends.hibari import Hibari
from inferhub.backends.kokoro import MAX_TOKENS, Kokoro
from inferhub.backends.speaking import espeak
from inferhub.backends.speaking.backend import SpeakingBackend
from inferhub.backends.speaking.voices import KOKORO_16
from inferhub.core.call import Delta, Finished
from inferhub.core.errors import Invalid, SetupError
from inferhub.core.models import ModelSpec
from inferhub.testing.calls import make_call

from . import speaking

TEXT = "The old clock stopped, and nobody knew why. Then it began again!"
PARAGRAPH = "Once upon a time there was a clock, which nobody had ever wound. It went all the same. " * 4

pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "magic", "codec"),
    [
        ("mp3", (b"\xff\xf3", b"\xff\xf2", b"\xff\xfb", b"ID3"), "mp3"),
        ("opus", (b"OggS",), "opus"),
        ("aac", (b"\xff\xf1", b"\xff\xf9"), "aac"),
        ("flac", (b"fLaC",), "flac"),
        ("wav", (b"RIFF",), "pcm_s16le"),
    ],
)
async def test_contract_065_every_format_is_what_it_says(
    hibari: Hibari, form: str, magic: tuple[bytes, ...], codec: str
) -> None:
    data, usage = await speaking.spoken(hibari, input=TEXT, response_format=form)
    plain = await speaking.heard(hibari, input=TEXT)
    sound, rate_hz, found = speaking.decoded(data)
    assert data.startswith(magic)
    assert codec in found
    assert rate_hz == (48_000 if form == "opus" else speaking.RATE_HZ)
    length_s = len(sound) / rate_hz
    assert length_s == pytest.approx(len(plain) / speaking.RATE_HZ, abs=0.15)
    assert usage.audio_ms / 1000 == pytest.approx(length_s, abs=0.15)
    assert usage.characters == len(TEXT)
    assert speaking.level(sound) == pytest.approx(speaking.level(plain), abs=2)


async def test_contract_065_a_streamed_wav_has_a_header_that_is_valid(hibari: Hibari) -> None:
    data, usage = await speaking.spoken(hibari, input=TEXT, response_format="wav")
    assert data[:4] + data[8:16] == b"RIFFWAVEfmt "
    assert int.from_bytes(data[24:28], "little") == speaking.RATE_HZ
    assert data[36:40] == b"data"
    assert (len(data) - 44) / 48 == pytest.approx(usage.audio_ms, abs=1)


@pytest.mark.parametrize("form", ["wav", "pcm", "opus"])
async def test_another_sample_rate_is_the_same_sound(hibari: Hibari, form: str) -> None:
    data, usage = await speaking.spoken(hibari, input=TEXT, response_format=form, sample_rate_hz=16_000)
    if form == "pcm":
        assert len(data) / 32 == pytest.approx(usage.audio_ms, abs=100)
        return
    sound, rate_hz, _ = speaking.decoded(data)
    assert rate_hz == (48_000 if form == "opus" else 16_000)
    assert len(sound) / rate_hz * 1000 == pytest.approx(usage.audio_ms, abs=150)


@pytest.mark.parametrize("form", ["mp3", "pcm"])
async def test_sound_comes_before_the_whole_is_made(kokoro: Kokoro, form: str) -> None:
    """The first clause is here while most of the text has not been looked at."""
    made: list[str] = []
    speak = kokoro.speak

    def noted(phrase: str, *rest: Any) -> Any:
        made.append(phrase)
        return speak(phrase, *rest)

    kokoro.speak = noted  # type: ignore[method-assign]
    try:
        chunks = kokoro.run(make_call("speech", input=PARAGRAPH, response_format=form))
        first = await anext(chunks)
        assert isinstance(first, Delta)
        assert first.payload.data
        early = len(made)
        async for _ in chunks:
            pass
    finally:
        kokoro.speak = speak  # type: ignore[method-assign]
    assert early <= 2 < len(made)


async def test_pieces_say_how_much_sound_they_are(hibari: Hibari) -> None:
    told, total = 0, -1
    async for chunk in hibari.run(make_call("speech", input=PARAGRAPH)):
        if isinstance(chunk, Finished):
            total = chunk.usage.audio_ms
        else:
            told += chunk.payload.audio_ms
    assert told == pytest.approx(total, abs=1)


async def test_the_same_words_sound_the_same_again(speaker: SpeakingBackend) -> None:
    """What a cache keeps is what would be said."""
    once = await speaking.heard(speaker, input="Good morning.")
    again = await speaking.heard(speaker, input="Good morning.")
    assert len(once) == len(again)
    assert float(np.abs(once - again).max()) < 0.02


# --- voices ------------------------------------------------------------------------------------


async def test_contract_065_an_unknown_voice_is_told_all_names(speaker: SpeakingBackend) -> None:
    with pytest.raises(Invalid, match="af_heart") as caught:
        await speaking.heard(speaker, input="Hello.", voice="nobody")
    assert (caught.value.param, caught.value.wire_code) == ("voice", "unknown_voice")


async def test_every_voice_that_is_promised_is_there(kokoro: Kokoro) -> None:
    assert [voice.id for voice in kokoro.capabilities[0].voices] == list(KOKORO_16)
    assert kokoro.capabilities == Kokoro.offers(ModelSpec("m", "kokoro"))


async def test_a_blend_is_between_its_voices(kokoro: Kokoro) -> None:
    text = "The river was wide, and the water was cold."
    heart = speaking.pitch_hz(await speaking.heard(kokoro, input=text, voice="af_heart"))
    michael = speaking.pitch_hz(await speaking.heard(kokoro, input=text, voice="am_michael"))
    both = speaking.pitch_hz(
        await speaking.heard(kokoro, input=text, voice={"af_heart": 0.5, "am_michael": 0.5})
    )
    assert michael * 1.1 < both < heart / 1.02


async def test_all_54_voices_from_a_folder(kokoro_path: Path, voices_path: Path, tmp_path: Path) -> None:
    """A folder of tables is what `kokoro-voices-all` is."""
    with np.load(voices_path) as tables:
        for name in ("am_puck", "bm_lewis"):
            table = tables["am_puck" if name == "am_puck" else "bm_george"]
            table.astype("<f4").tofile(tmp_path / f"{name}.bin")
    (tmp_path / "af_broken.bin").write_bytes(b"\0" * 1024)
    backend = Kokoro(ModelSpec("k", "kokoro", slots=1, options={"voices": str(tmp_path)}), kokoro_path)
    await backend.load()
    try:
        assert [voice.id for voice in backend.choir.voices] == ["am_puck", "bm_lewis", "af_broken"]
        assert len(await speaking.heard(backend, input="Hello.", voice="bm_lewis")) > 10_000
        with pytest.raises(SetupError, match="af_broken"):
            await speaking.heard(backend, input="Hello.", voice="af_broken")
    finally:
        await backend.unload()


# --- controls ----------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.5, 4.0])
async def test_speed_changes_the_length_and_not_the_pitch(hibari: Hibari, speed: float) -> None:
    plain = await speaking.heard(hibari, input=TEXT)
    changed = await speaking.heard(hibari, input=TEXT, speed=speed)
    assert len(plain) / len(changed) == pytest.approx(speed, rel=0.04)
    assert speaking.pitch_hz(changed) == pytest.approx(speaking.pitch_hz(plain), rel=0.12)


@pytest.mark.parametrize("semitones", [-6, 6])
async def test_pitch_changes_the_pitch_and_not_the_length(hibari: Hibari, semitones: int) -> None:
    plain = await speaking.heard(hibari, input=TEXT)
    changed = await speaking.heard(hibari, input=TEXT, pitch=semitones)
    assert len(changed) == pytest.approx(len(plain), rel=0.05)
    ratio = speaking.pitch_hz(changed) / speaking.pitch_hz(plain)
    assert ratio == pytest.approx(2 ** (semitones / 12), rel=0.06)


async def test_gain_changes_the_level(hibari: Hibari) -> None:
    plain = speaking.level(await speaking.heard(hibari, input=TEXT))
    quiet = speaking.level(await speaking.heard(hibari, input=TEXT, gain_db=-12))
    loud = await speaking.heard(hibari, input=TEXT, gain_db=20)
    assert quiet - plain == pytest.approx(-12, abs=0.7)
    assert speaking.level(loud) > plain + 4
    assert float(np.abs(loud).max()) < 1.0, "limited, not clipped"


# --- odd texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "3.14159",
        "42",
        "Hello 👋🏽 world 🎉",
        "e\u0301cole na\u00efve \u200bzero\u200b width",
        "naïve — “quotes” … and ‘more’",
        "x" * 300,
        "9" * 60,
        "$1,000,000,000,000,000,000,000,000,000,000,000,000,000,000.5",
        "[a link](https://example.org) and [[x]] \x01 <speak>",
        "ALL CAPS AND iNTERNALcAPS",
        "Привет, мир. 你好。",
        "\ud7ff\uf8ff and\u2028lines",
        "a",
    ],
)
async def test_odd_texts_are_spoken(speaker: SpeakingBackend, text: str) -> None:
    data, usage = await speaking.spoken(speaker, input=text, response_format="pcm")
    assert usage.characters == len(text)
    assert len(data) > 2000


@pytest.mark.parametrize("text", ["🎉", "...", "?!", "—", "\u200b", "☃ ☃"])
async def test_what_has_no_sound_is_refused_before_an_answer_begins(
    speaker: SpeakingBackend, text: str
) -> None:
    with pytest.raises(Invalid) as caught:
        await anext(speaker.run(make_call("speech", input=text, response_format="wav")))
    assert (caught.value.param, caught.value.wire_code) == ("input", "nothing_to_say")


async def test_phrases_never_have_more_tokens_than_the_model_takes(kokoro: Kokoro) -> None:
    """A clause whose phonemes are long is spoken in several phrases, and none of it is lost."""
    from inferhub.backends.speaking.plan import Plan
    from inferhub.media import Effects

    plan = Plan({"af_heart": 1.0}, "en-US", Effects(), "pcm", None)
    clause = "seventy-seven thousand seven hundred and seventy-seven, " * 40
    found = kokoro.phrases(clause, plan)
    assert len(found) > 1
    assert max(map(len, found)) <= MAX_TOKENS
    assert sum(phrase.count("sˈɛvənti") for phrase in found) >= 40
    await asyncio.to_thread(kokoro.speak, "a" * MAX_TOKENS, plan, _switch())


def _switch() -> Any:
    from inferhub.backends.speaking.backend import Switch

    return Switch()


async def test_a_language_that_the_engine_does_not_speak(hibari: Hibari) -> None:
    with pytest.raises(Invalid) as caught:
        await speaking.heard(hibari, input="Hola", language="es")
    assert caught.value.param == "language"


async def test_a_missing_phonemiser_is_named_with_its_package(
    kokoro: Kokoro, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(espeak, "PROGRAM", "espeak-ng-that-is-not-there")
    espeak._found.cache_clear()
    try:
        with pytest.raises(SetupError, match="apt-get install") as caught:
            await speaking.heard(kokoro, input="Hola, ¿qué tal?", voice="ef_dora")
        assert (caught.value.param, caught.value.wire_code) == ("language", "phonemizer_missing")
    finally:
        espeak._found.cache_clear()


# --- cancelling --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pcm", "mp3"])
async def test_a_cancelled_call_frees_the_engine_within_a_second(kokoro: Kokoro, form: str) -> None:
    """Also in the middle of a clause: its thread is free again."""

    async def listen() -> None:
        async for _ in kokoro.run(make_call("speech", input=PARAGRAPH, response_format=form)):
            began.set()

    for _ in range(2 * kokoro.spec.slots):
        began = asyncio.Event()
        task = asyncio.create_task(listen())
        await asyncio.wait_for(began.wait(), 60)
        task.cancel()
        stopped_s = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        # A thread that still computed would keep this waiting.
        await asyncio.gather(*(kokoro._work(time.sleep, 0.01) for _ in range(kokoro.spec.slots)))
        assert time.monotonic() - stopped_s < 2.0
