"""Live recognition with the real models: partials, finals, pauses, formats, languages, speakers, hang-ups."""

from __future__ import annotations

import asyncio
import time
import wave
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from inferhub.backends.kokoro import Kokoro
from inferhub.backends.whisper.backend import Whisper
from inferhub.backends.whisper.resample import Resampler
from inferhub.core.call import Call, Delta, Finished, Frame, Media
from inferhub.core.errors import Invalid
from inferhub.core.models import ModelSpec
from inferhub.modalities.transcription import TranscriptDelta
from inferhub.testing.calls import make_call
from inferhub.testing.words import word_error_rate

from . import speaking

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA = Path(__file__).parents[1] / "data"
FIRST_WORDS = "it was the best of times it was the worst of times"
RATE_HZ = 16_000
CHUNK_S = 0.1

Samples = NDArray[np.int16]
Frames = Callable[[], AsyncIterator[Frame]]


def recording(name: str, *, rate_hz: int = RATE_HZ) -> Samples:
    with wave.open(str(DATA / name)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return Resampler(file.getframerate(), rate_hz).take(samples)


CITIES = recording("two_cities.wav")
DIALOGUE = recording("endgame_nagg_nell.wav")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny(whisper_tiny_path: Path, d_vector_path: Path) -> AsyncIterator[Whisper]:
    async for backend in loaded("whisper-tiny.en", whisper_tiny_path, d_vector_path):
        yield backend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def base(whisper_base_path: Path, d_vector_path: Path) -> AsyncIterator[Whisper]:
    async for backend in loaded("whisper-base", whisper_base_path, d_vector_path):
        yield backend


async def loaded(name: str, path: Path, speakers: Path) -> AsyncIterator[Whisper]:
    backend = Whisper(ModelSpec(name, "whisper", weights=name, options={"speakers": str(speakers)}), path)
    await backend.load()
    yield backend
    await backend.unload()


async def said(data: bytes, *, rate_hz: int = RATE_HZ, pace: float = 0.0) -> AsyncIterator[Frame]:
    """PCM in pieces of a tenth of a second; `pace` 1 is as fast as somebody speaks."""
    size = round(rate_hz * CHUNK_S) * 2
    begin_s = time.monotonic()
    for number, at in enumerate(range(0, len(data), size)):
        await asyncio.sleep(max(0.0, begin_s + number * CHUNK_S * pace - time.monotonic()) if pace else 0)
        yield Frame(data[at : at + size])


def call(incoming: AsyncIterator[Frame], *, live: dict[str, Any] | None = None, **params: Any) -> Call:
    made = make_call("transcription", stream=True, live=live or {}, **params)
    return replace(made, incoming=incoming, media=())


async def listened(
    backend: Whisper, incoming: AsyncIterator[Frame], **params: Any
) -> tuple[list[TranscriptDelta], Finished]:
    deltas: list[TranscriptDelta] = []
    finished: Finished | None = None
    async for chunk in backend.run(call(incoming, **params)):
        if isinstance(chunk, Delta):
            deltas.append(chunk.payload)
        else:
            finished = chunk
    assert finished is not None
    return deltas, finished


def texts(deltas: Sequence[TranscriptDelta], kind: str = "final") -> list[str]:
    return [delta.text for delta in deltas if delta.kind == kind]


def errors(expected: str, got: str) -> float:
    return word_error_rate(expected, got)


# --- what is said ----------------------------------------------------------------------------------


async def test_finals_say_what_was_said_and_partials_lead_up_to_them(tiny: Whisper) -> None:
    sound = CITIES[: 12 * RATE_HZ].tobytes()
    deltas, finished = await listened(tiny, said(sound, pace=1.0))
    final = " ".join(texts(deltas))
    assert errors(f"{FIRST_WORDS} it was the age of wisdom it was the age of foolishness", final[:105]) < 0.2
    kinds = [delta.kind for delta in deltas]
    assert kinds[0] == "about"
    assert kinds.index("speech_started") < kinds.index("partial") < kinds.index("final")
    assert "it was the best" in texts(deltas, "partial")[1].lower()
    assert finished.usage.audio_ms == 12_000
    assert finished.usage.source == "reported"


async def test_every_utterance_has_its_events_in_order_and_its_own_number(tiny: Whisper) -> None:
    deltas, _ = await listened(tiny, said(CITIES[: 12 * RATE_HZ].tobytes(), pace=0.2))
    numbers = sorted({delta.utterance for delta in deltas if delta.kind != "about"})
    assert numbers == list(range(len(numbers)))
    for number in numbers:
        kinds = [d.kind for d in deltas if d.utterance == number and d.kind != "about"]
        assert kinds[0] == "speech_started"
        assert kinds[-1] == "final"
        assert kinds[-2] in ("speech_stopped", "committed")
        assert set(kinds[1:-2]) <= {"partial"}


async def test_a_partial_is_recognition_of_all_the_sound_so_far(tiny: Whisper) -> None:
    """With the sound held after second 3, the last partial is the transcript of those 3 s."""
    sound = CITIES[: 3 * RATE_HZ]
    hold = asyncio.Event()

    async def held() -> AsyncIterator[Frame]:
        async for frame in said(sound.tobytes(), pace=1.0):
            yield frame
        await hold.wait()

    last = ""
    async with aclosing(tiny.run(call(held()))) as chunks:  # type: ignore[type-var]
        async with asyncio.timeout(60):
            async for chunk in chunks:
                if isinstance(chunk, Delta) and chunk.payload.kind == "partial":
                    last = chunk.payload.text
                    if chunk.payload.at_s >= 3.0:
                        break
    buffer = BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes(sound.tobytes())
    media = (Media("file", buffer.getvalue(), "audio/wav"),)
    whole = replace(make_call("transcription"), media=media)
    transcript = [
        chunk.payload.segment.text
        async for chunk in tiny.run(whole)
        if isinstance(chunk, Delta) and chunk.payload.segment is not None
    ]
    assert errors("".join(transcript), last) == 0


async def test_the_first_partial_looks_at_less_than_a_second_of_speech(tiny: Whisper) -> None:
    """What it costs to recognise it depends on the machine; when it is begun does not."""
    deltas, _ = await listened(tiny, said(CITIES[: 4 * RATE_HZ].tobytes(), pace=1.0))
    started = next(delta for delta in deltas if delta.kind == "speech_started")
    first = next(delta for delta in deltas if delta.kind == "partial")
    assert first.at_s - started.at_s < 1.6


async def test_sound_that_comes_faster_than_it_is_understood_is_understood_all_the_same(
    tiny: Whisper,
) -> None:
    deltas, finished = await listened(tiny, said(CITIES.tobytes()))
    assert finished.usage.audio_ms == round(len(CITIES) / RATE_HZ * 1000)
    text = " ".join(texts(deltas))
    assert text.lower().startswith("it was the best of times")
    assert "superlative degree of comparison only" in text
    # Partials that came too late to be of use were never made.
    assert len(texts(deltas, "partial")) < len(CITIES) / RATE_HZ / 0.8


async def test_without_partials_there_are_none(tiny: Whisper) -> None:
    deltas, _ = await listened(tiny, said(CITIES[: 5 * RATE_HZ].tobytes()), live={"partials": False})
    assert not texts(deltas, "partial")
    assert texts(deltas)


@pytest.mark.parametrize("kind", ["silence", "noise", "nothing"])
async def test_no_speech_says_nothing(tiny: Whisper, kind: str) -> None:
    rng = np.random.default_rng(7)
    sound = {
        "silence": np.zeros(4 * RATE_HZ, np.int16),
        "noise": rng.integers(-300, 300, 4 * RATE_HZ).astype(np.int16),
        "nothing": np.zeros(0, np.int16),
    }[kind]
    deltas, finished = await listened(tiny, said(sound.tobytes()))
    assert [delta.kind for delta in deltas] == ["about"]
    assert finished.usage.audio_ms == len(sound) // 16


async def test_words_have_times_of_the_session(tiny: Whisper) -> None:
    silence = np.zeros(2 * RATE_HZ, np.int16)
    sound = np.concatenate([silence, CITIES[: 5 * RATE_HZ]])
    deltas, _ = await listened(
        tiny, said(sound.tobytes()), timestamp_granularities=["word"], response_format="verbose_json"
    )
    final = next(delta for delta in deltas if delta.kind == "final")
    assert final.segment is not None
    assert final.segment.words
    assert 2.0 < final.segment.words[0].start < 4.0
    assert final.segment.words[-1].end <= 7.0


async def test_a_speech_without_pauses_is_cut_and_loses_no_words(tiny: Whisper) -> None:
    """Endpoints of ten seconds: nothing ends by itself before the sound does."""
    deltas, _ = await listened(
        tiny, said(CITIES.tobytes()), live={"endpointing": {"silence_duration_ms": 10_000}, "partials": False}
    )
    finals = texts(deltas)
    assert len(finals) >= 2
    assert errors(" ".join(finals), " ".join(texts((await listened(tiny, said(CITIES.tobytes())))[0]))) < 0.15


# --- who ends an utterance --------------------------------------------------------------------------


async def with_events(*items: bytes | str) -> AsyncIterator[Frame]:
    for item in items:
        if isinstance(item, str):
            yield Frame(event=item)
        else:
            async for frame in said(item):
                yield frame


async def test_without_endpointing_the_client_ends_each_utterance(tiny: Whisper) -> None:
    first, second = CITIES[: 4 * RATE_HZ].tobytes(), CITIES[4 * RATE_HZ : 8 * RATE_HZ].tobytes()
    deltas, _ = await listened(
        tiny, with_events(first, "commit", second, "commit"), live={"endpointing": None, "partials": False}
    )
    assert [delta.kind for delta in deltas if delta.kind != "about"].count("committed") == 2
    one, two = texts(deltas)
    assert "best of times" in one.lower()
    assert "best of times" not in two.lower()


async def test_what_is_cleared_is_not_transcribed(tiny: Whisper) -> None:
    first, second = CITIES[: 4 * RATE_HZ].tobytes(), CITIES[9 * RATE_HZ : 13 * RATE_HZ].tobytes()
    deltas, _ = await listened(
        tiny, with_events(first, "clear", second, "commit"), live={"endpointing": None}
    )
    (text,) = texts(deltas)
    assert "best of times" not in text.lower()
    assert "epoch" in text.lower()


async def test_an_event_that_nobody_knows_is_refused(tiny: Whisper) -> None:
    with pytest.raises(Invalid, match="zap"):
        await listened(tiny, with_events("zap"))


# --- kinds of sound ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [8000, 24_000, 48_000])
async def test_pcm_of_any_rate(tiny: Whisper, rate_hz: int) -> None:
    sound = recording("two_cities.wav", rate_hz=rate_hz)[: 5 * rate_hz].tobytes()
    deltas, _ = await listened(tiny, said(sound, rate_hz=rate_hz), live={"rate_hz": rate_hz})
    assert errors(FIRST_WORDS, texts(deltas)[0]) < 0.2


@pytest.mark.parametrize("container", ["ogg", "webm"])
async def test_opus_in_its_containers(tiny: Whisper, container: str) -> None:
    data = opus(CITIES[: 5 * RATE_HZ], container)

    async def pieces() -> AsyncIterator[Frame]:
        for at in range(0, len(data), 500):
            yield Frame(data[at : at + 500])

    deltas, finished = await listened(tiny, pieces(), live={"format": "opus"})
    assert errors(FIRST_WORDS, " ".join(texts(deltas))) < 0.2
    assert abs(finished.usage.audio_ms - 5000) < 200


def opus(samples: Samples, container: str) -> bytes:
    out = BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream("libopus", rate=48_000, layout="mono")
        loud = Resampler(RATE_HZ, 48_000).take(samples)
        frame = av.AudioFrame.from_ndarray(loud.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = 48_000
        fifo = av.AudioFifo()
        fifo.write(frame)
        while (part := fifo.read(960)) is not None:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return out.getvalue()


async def test_opus_that_is_none_ends_the_session(tiny: Whisper) -> None:
    async def rubbish() -> AsyncIterator[Frame]:
        for _ in range(200):
            yield Frame(b"\x13rubbish" * 100)
            await asyncio.sleep(0)

    with pytest.raises(Invalid):
        await listened(tiny, rubbish(), live={"format": "opus"})


# --- languages and speakers ----------------------------------------------------------------------


SENTENCES = {
    "es": ("Los niños juegan al fútbol detrás de la escuela.", "Mi hermana trabaja en un hospital."),
    "fr": ("Personne n'attendait une réponse aussi simple.", "Le train part très tôt le matin."),
    "it": ("Oggi fa troppo freddo per nuotare nel lago.", "Il giardino è pieno di fiori rossi e gialli."),
    "pt": ("O livro era muito melhor do que o filme.", "O jardim está cheio de flores vermelhas."),
}


@pytest.mark.parametrize("language", SENTENCES)
async def test_other_languages_are_found_out_and_heard_live(
    base: Whisper, kokoro: Kokoro, language: str
) -> None:
    quiet = np.zeros(RATE_HZ, np.int16)
    sound = [quiet]
    for sentence in SENTENCES[language]:
        spoken = await speaking.heard(kokoro, input=sentence, language=language)
        sound += [Resampler(speaking.RATE_HZ, RATE_HZ).take((spoken * 32767).astype(np.int16)), quiet]
    deltas, _ = await listened(base, said(np.concatenate(sound).tobytes(), pace=1.0))
    finals = [delta for delta in deltas if delta.kind == "final"]
    assert {delta.language for delta in finals} == {language}
    assert texts(deltas, "partial")  # in any language: the first ones have heard next to nothing
    assert errors(" ".join(SENTENCES[language]), " ".join(delta.text for delta in finals)) <= 0.25


async def test_two_people_have_two_labels(tiny: Whisper) -> None:
    deltas, _ = await listened(
        tiny, said(DIALOGUE.tobytes()), diarize=True, num_speakers=2, live={"partials": False}
    )
    speakers = [d.segment.speaker for d in deltas if d.kind == "final" and d.segment is not None]
    assert set(speakers) - {None} == {"A", "B"}
    assert next(speaker for speaker in speakers if speaker) == "A"


async def test_nobody_is_named_where_nobody_asked(tiny: Whisper) -> None:
    deltas, _ = await listened(tiny, said(CITIES[: 5 * RATE_HZ].tobytes()))
    assert all(d.segment.speaker is None for d in deltas if d.segment is not None)


# --- room and time ------------------------------------------------------------------------------------


async def test_a_client_that_goes_frees_the_engine_within_a_second_or_two(tiny: Whisper) -> None:
    for _ in range(3):
        running = tiny.run(call(said(CITIES.tobytes())))
        async for chunk in running:
            if isinstance(chunk, Delta) and chunk.payload.kind == "speech_stopped":
                break
        begin_s = time.monotonic()
        await running.aclose()  # type: ignore[attr-defined]
        assert time.monotonic() - begin_s < 5
    # Whatever was left behind in the engine's threads would be in the way of this one.
    deltas, _ = await listened(tiny, said(CITIES[: 3 * RATE_HZ].tobytes()))
    assert texts(deltas)


async def test_sound_is_taken_in_only_as_long_as_there_is_room(tiny: Whisper) -> None:
    taken = 0
    long = np.tile(CITIES, 6).tobytes()

    async def counted() -> AsyncIterator[Frame]:
        nonlocal taken
        async for frame in said(long):
            taken += len(frame.data)
            yield frame

    running = tiny.run(call(counted(), live={"partials": False}))
    async for chunk in running:
        if isinstance(chunk, Delta) and chunk.payload.kind == "final":
            break
    assert taken / 2 / RATE_HZ < 110  # of 266 s
    await running.aclose()  # type: ignore[attr-defined]
