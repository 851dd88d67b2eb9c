"""Whisper on real recordings: what is said, when, in which language; and what is no speech, or no sound."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import time
import wave
from collections.abc import AsyncIterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import pytest
import pytest_asyncio

from inferhub.backends.kokoro import Kokoro
from inferhub.backends.whisper.backend import Whisper
from inferhub.core.call import Call, Delta, Finished, Media
from inferhub.core.errors import Invalid, SetupError, TooLarge, Unsupported
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.media import MediaPool
from inferhub.modalities.transcription import Segment, TranscriptDelta
from inferhub.testing.calls import make_call
from inferhub.testing.words import word_error_rate

from . import speaking

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA = Path(__file__).parents[1] / "data"
CITIES = (DATA / "two_cities.wav").read_bytes()
DIALOGUE = (DATA / "endgame_nagg_nell.wav").read_bytes()
CITIES_TEXT = """
It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness,
it was the epoch of belief, it was the epoch of incredulity, it was the season of light, it was the season of
darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing
before us, we were all going direct to heaven, we were all going direct the other way. In short, the period was
so far like the present period that some of its noisiest authorities insisted on its being received, for good
or for evil, in the superlative degree of comparison only.
"""
RATE_HZ = 16_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def base(whisper_base_path: Path, d_vector_path: Path) -> AsyncIterator[Whisper]:
    options = {"speakers": str(d_vector_path), "max_duration_s": 120}
    backend = Whisper(
        ModelSpec("base", "whisper", weights="whisper-base", options=options), whisper_base_path
    )
    await backend.load()
    yield backend
    await backend.unload()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny(whisper_tiny_path: Path) -> AsyncIterator[Whisper]:
    options = {"speakers": ""}
    backend = Whisper(
        ModelSpec("tiny", "whisper", weights="whisper-tiny.en", options=options), whisper_tiny_path
    )
    await backend.load()
    yield backend
    await backend.unload()


def asking(sound: bytes, **fields: Any) -> Call:
    return make_call("transcription", media=(Media("file", sound),), **fields)


class Said:
    """All that one call answered."""

    def __init__(self, items: Sequence[Delta | Finished]) -> None:
        deltas = [item.payload for item in items[:-1] if isinstance(item, Delta)]
        assert all(isinstance(delta, TranscriptDelta) for delta in deltas)
        self.about: TranscriptDelta = deltas[0]
        assert [delta.kind for delta in deltas] == ["about"] + ["segment"] * (len(deltas) - 1)
        self.segments: list[Segment] = [delta.segment for delta in deltas[1:]]
        end = items[-1]
        assert isinstance(end, Finished)
        self.usage = end.usage

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()


async def said(backend: Whisper, sound: bytes, **fields: Any) -> Said:
    return Said([item async for item in backend.run(asking(sound, **fields))])


def wav(samples: Sequence[int], rate_hz: int = RATE_HZ) -> bytes:
    file = BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes(b"".join(sample.to_bytes(2, "little", signed=True) for sample in samples))
    return file.getvalue()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def french(kokoro_path: Path, voices_path: Path) -> bytes:
    """A French voice."""
    if shutil.which("espeak-ng") is None:
        pytest.fail("This test needs the program espeak-ng: `apt-get install espeak-ng`.", pytrace=False)
    voice = Kokoro(ModelSpec("k", "kokoro", slots=1, options={"voices": str(voices_path)}), kokoro_path)
    await voice.load()
    try:
        text = "Bonjour, je m'appelle Pierre. J'habite dans une petite maison près de la mer."
        sound, _ = await speaking.spoken(voice, input=text, voice="ff_siwis", response_format="wav")
    finally:
        await voice.unload()
    return sound


# --- what is said ---------------------------------------------------------------------------------


async def test_a_reader_is_understood(tiny: Whisper) -> None:
    heard = await said(tiny, CITIES)
    assert word_error_rate(CITIES_TEXT, heard.text) <= 0.03
    assert heard.usage == Usage(audio_ms=44_374)
    assert (heard.about.language, round(heard.about.duration_s, 3)) == ("en", 44.374)


async def test_the_larger_model_finds_out_the_language(base: Whisper) -> None:
    heard = await said(base, CITIES)
    assert word_error_rate(CITIES_TEXT, heard.text) <= 0.03
    assert heard.about.language == "en"
    assert heard.about.language_probability is not None
    assert heard.about.language_probability > 0.9


async def test_segments_come_in_order_and_inside_the_recording(tiny: Whisper) -> None:
    heard = await said(tiny, CITIES)
    times = [moment for segment in heard.segments for moment in (segment.start, segment.end)]
    assert times == sorted(times)
    assert times[0] > 0.5, "it begins with silence"
    assert times[-1] <= 44.374
    assert [segment.id for segment in heard.segments] == list(range(len(heard.segments)))
    assert all(segment.words is None and segment.speaker is None for segment in heard.segments)
    assert all(segment.tokens for segment in heard.segments)


async def test_words_never_go_back_and_never_leave_their_segment(tiny: Whisper) -> None:
    heard = await said(
        tiny, CITIES, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    at = 0.0
    for segment in heard.segments:
        assert segment.words
        assert "".join(word.word for word in segment.words) == segment.text
        for word in segment.words:
            assert at <= word.start <= word.end <= segment.end <= 44.374
            at = word.end
    worst = next(word for segment in heard.segments for word in segment.words or () if "worst" in word.word)
    assert 2.5 < worst.start < 4.2


async def test_segments_leave_while_the_rest_is_still_recognised(base: Whisper) -> None:
    moments = [time.monotonic() async for _ in base.run(asking(CITIES, stream=True))]
    assert moments[-2] - moments[1] > 0.2, "everything came at once"


async def test_a_prompt_teaches_a_spelling(base: Whisper) -> None:
    plain = await said(base, DIALOGUE)
    taught = await said(
        base, DIALOGUE, prompt="do you hear me? yes. do you hear me? yes. no capital letters here."
    )
    assert "Do you hear me?" in plain.text
    assert taught.text != plain.text


async def test_a_high_temperature_may_say_something_else_and_zero_says_the_same(tiny: Whisper) -> None:
    first, second = (await said(tiny, DIALOGUE, temperature=0.0), await said(tiny, DIALOGUE, temperature=0.0))
    assert first.text == second.text
    warm = await said(tiny, DIALOGUE, temperature=0.9)
    assert all(segment.temperature == pytest.approx(0.9) for segment in warm.segments)


async def test_french_is_understood_and_translated(base: Whisper, french: bytes) -> None:
    heard = await said(base, french)
    assert heard.about.language == "fr"
    assert "petite maison" in heard.text
    for hint in ("fr", "French", None):
        translated = await said(base, french, task="translate", language=hint)
        assert re.search(r"\b(house|home)\b", translated.text)
        assert "maison" not in translated.text


# --- what is no speech ----------------------------------------------------------------------------


async def test_silence_is_an_empty_text(tiny: Whisper, base: Whisper) -> None:
    for backend in (tiny, base):
        heard = await said(backend, wav([0] * RATE_HZ * 5))
        assert (heard.text, heard.segments, heard.usage) == ("", [], Usage(audio_ms=5000))


async def test_noise_is_an_empty_text(base: Whisper) -> None:
    dice = random.Random(7)
    for loudness in (200, 3000, 12_000):
        heard = await said(base, wav([int(dice.gauss(0, loudness)) % 30_000 for _ in range(RATE_HZ * 3)]))
        assert heard.text == ""


async def test_a_moment_is_no_error(tiny: Whisper) -> None:
    for samples in (1, 100, 512, 1600):
        assert (await said(tiny, wav([0] * samples))).text == ""


async def test_silence_before_speech_is_left_out_and_times_stay_right(tiny: Whisper) -> None:
    with wave.open(BytesIO(CITIES)) as file:
        rate_hz, width = file.getframerate(), file.getsampwidth()
        frames = file.readframes(rate_hz * 9)
    out = BytesIO()
    with wave.open(out, "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(width)
        made.setframerate(rate_hz)
        made.writeframes(bytes(rate_hz * width * 35) + frames)
    heard = await said(tiny, out.getvalue())
    assert heard.segments[0].text.startswith(" It was the best")
    assert 35.3 < heard.segments[0].start < 36.5


# --- what is no sound -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["mp3", "flac", "aac", "opus", "wav"])
async def test_every_format_is_known_by_its_content(tiny: Whisper, form: str) -> None:
    pool = MediaPool()
    try:

        async def pcm() -> AsyncIterator[bytes]:
            async for piece in pool.decode_audio(DIALOGUE, rate_hz=24_000):
                yield piece

        file = b"".join([piece async for piece in pool.encode_audio(pcm(), rate_hz=24_000, format=form)])
    finally:
        await pool.close()
    call = make_call("transcription", media=(Media("file", file, name="wrong.txt"),))
    heard = Said([item async for item in tiny.run(call)])
    assert "Do you hear me" in heard.text


def in_container(sound: bytes, container: str, codec: str) -> bytes:
    """The same sound as a phone or a browser would record it."""
    out = BytesIO()
    with av.open(BytesIO(sound)) as source, av.open(out, "w", format=container) as made:
        stream = made.add_stream(codec, rate=48_000)
        assert isinstance(stream, av.AudioStream)
        resampler = av.AudioResampler(stream.codec_context.format, "mono", 48_000, stream.frame_size or 960)
        stream.codec_context.layout = "mono"
        for frame in [*source.decode(audio=0), None]:
            for part in resampler.resample(frame):
                made.mux(stream.encode(part))
        made.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("webm", "libopus"), ("ogg", "libopus")])
async def test_recordings_of_phones_and_browsers(tiny: Whisper, container: str, codec: str) -> None:
    heard = await said(tiny, in_container(DIALOGUE, container, codec))
    assert "Do you hear me" in heard.text
    assert heard.usage.audio_ms == pytest.approx(28_277, abs=120)


@pytest.mark.parametrize(
    "sound",
    [
        b"",
        b"no sound at all",
        b"RIFF\x24\x00\x00\x00WAVE" + bytes(40),
        b"fLaC" + bytes(3000),
        b"\x89PNG\r\n\x1a\n" + bytes(99),
    ],
)
async def test_what_is_no_sound_is_refused(tiny: Whisper, sound: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        await said(tiny, sound)
    assert refused.value.param == "file"


async def test_too_long_is_refused_while_it_is_decoded(base: Whisper) -> None:
    with pytest.raises(TooLarge):
        await said(base, wav([0] * RATE_HZ * 121))


async def test_a_language_that_nobody_speaks(base: Whisper, tiny: Whisper) -> None:
    with pytest.raises(Invalid, match="af, am, ar"):
        await said(base, DIALOGUE, language="xx")
    with pytest.raises(Invalid, match="It knows: en"):
        await said(tiny, DIALOGUE, language="fr")


async def test_nothing_but_transcriptions_is_answered(tiny: Whisper) -> None:
    with pytest.raises(Unsupported):
        [item async for item in tiny.run(make_call("embedding"))]
    with pytest.raises(Invalid):
        [item async for item in tiny.run(make_call("transcription"))]


# --- who speaks -----------------------------------------------------------------------------------


async def test_a_dialogue_has_two_speakers_in_turn(base: Whisper) -> None:
    heard = await said(base, DIALOGUE, num_speakers=2)
    assert {segment.speaker for segment in heard.segments} == {"A", "B"}
    speakers = {segment.text.strip(): segment.speaker for segment in heard.segments}
    assert speakers["What are you talking about?"] == "A"
    assert speakers["You thought you were in pain."] == "A"
    assert speakers["Not now."] == "B"
    assert all(segment.words is None for segment in heard.segments), "nobody asked for words"


async def test_a_monologue_has_one_speaker(base: Whisper) -> None:
    heard = await said(base, CITIES, diarize=True)
    assert {segment.speaker for segment in heard.segments} == {"A"}
    assert word_error_rate(CITIES_TEXT, heard.text) <= 0.03


async def test_a_model_without_an_embedder_does_not_offer_speakers(tiny: Whisper, base: Whisper) -> None:
    assert "diarize" not in tiny.capabilities[0].features
    assert "diarize" in base.capabilities[0].features


# --- life -----------------------------------------------------------------------------------------


async def test_a_cancelled_call_frees_the_engine(base: Whisper) -> None:
    async def run() -> None:
        async for _ in base.run(asking(CITIES)):
            pass

    await said(base, DIALOGUE)  # so that nothing is done for the first time
    calls = [asyncio.ensure_future(run()) for _ in range(6)]
    await asyncio.sleep(0.7)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert all(call.cancelled() for call in calls)
    began = time.monotonic()
    await said(base, wav([0] * RATE_HZ))
    # Twelve windows would still wait; what is left of two is a matter of a second on a quiet machine.
    assert time.monotonic() - began < 10
    assert (await said(base, DIALOGUE)).text


async def test_calls_at_once_do_not_mix(tiny: Whisper) -> None:
    alone = (await said(tiny, CITIES)).text, (await said(tiny, DIALOGUE)).text
    both = await asyncio.gather(*(said(tiny, sound) for sound in (CITIES, DIALOGUE, CITIES, DIALOGUE)))
    assert [heard.text for heard in both] == [alone[0], alone[1], alone[0], alone[1]]


def spec(weights: str, **options: Any) -> ModelSpec:
    return ModelSpec("m", "whisper", weights=weights, options=options)


@pytest.mark.parametrize(
    ("given", "has_translation", "has_speakers"),
    [
        (spec("whisper-base"), True, True),
        (spec("whisper-tiny.en"), False, True),
        (spec("/models/distil-small.en", speakers=""), False, False),
        (spec("/models/mine", english_only=True), False, True),
    ],
)
async def test_what_is_offered_is_known_before_it_is_loaded(
    given: ModelSpec, has_translation: bool, has_speakers: bool
) -> None:
    [offer] = Whisper.offers(given)
    assert ("translate" in offer.features, "diarize" in offer.features) == (has_translation, has_speakers)
    assert {"stream", "word_timestamps", "live"} <= offer.features


async def test_options_are_checked_before_it_is_loaded() -> None:
    for options in ({"beam_size": 0}, {"language": "xx"}, {"compute_type": "int3"}, {"beams": 1}):
        with pytest.raises(SetupError):
            Whisper.offers(spec("whisper-base", **options))
    with pytest.raises(SetupError, match="knows en"):
        Whisper.offers(spec("whisper-tiny.en", language="fr"))


async def test_weights_that_are_something_else(tmp_path: Path, whisper_tiny_path: Path) -> None:
    with pytest.raises(SetupError, match=re.escape("'model.bin'")):
        await Whisper(spec("mine", speakers=""), tmp_path).load()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(SetupError, match="CTranslate2"):
        await Whisper(spec("mine", speakers=""), tmp_path).load()
    with pytest.raises(SetupError, match="'english_only' to true"):
        await Whisper(spec("mine", speakers=""), whisper_tiny_path).load()
    with pytest.raises(SetupError, match="speaker embedder"):
        await Whisper(spec("x.en", speakers=str(tmp_path / "config.json")), whisper_tiny_path).load()
