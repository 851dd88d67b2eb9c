"""Sound through real child processes: every format there and back, effects measured, and what is no sound."""

from __future__ import annotations

import asyncio
import io
import struct
import wave
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from inferhub.core.errors import InferHubError, Invalid, TooLarge
from inferhub.media import Effects, MediaLimits, MediaPool, sniff, wav_header

RATE_HZ = 24_000
MAGIC = {
    "mp3": (b"\xff\xf3", "audio/mpeg"),
    "opus": (b"OggS", "audio/ogg"),
    "aac": (b"\xff\xf1", "audio/aac"),
    "flac": (b"fLaC", "audio/flac"),
    "wav": (b"RIFF", "audio/wav"),
}


@pytest.fixture
async def pool() -> AsyncIterator[MediaPool]:
    pool = MediaPool()
    yield pool
    await pool.close()


def tone(seconds: float, hertz: float = 440.0, rate_hz: int = RATE_HZ, level: float = 0.2) -> bytes:
    times = np.arange(int(seconds * rate_hz)) / rate_hz
    return (np.sin(2 * np.pi * hertz * times) * level * 32767).astype("<i2").tobytes()


def wav(pcm: bytes, rate_hz: int = RATE_HZ) -> bytes:
    return wav_header(rate_hz, len(pcm)) + pcm


async def pieces(data: bytes, size: int = 4001) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def joined(source: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in source])


async def count(source: AsyncIterator[bytes], sizes: list[int]) -> None:
    """Also of what came before a failure."""
    async for piece in source:
        sizes += [len(piece)]


async def encoded(pool: MediaPool, pcm: bytes, name: str, effects: Effects | None = None) -> bytes:
    source = pool.encode_audio(pieces(pcm), rate_hz=RATE_HZ, format=name, effects=effects or Effects())
    return await joined(source)


async def refused(pool: MediaPool, data: bytes) -> InferHubError:
    with pytest.raises((Invalid, TooLarge)) as caught:
        await joined(pool.decode_audio(data))
    error = caught.value
    assert error.param == "file"
    assert "0x" not in error.message
    assert error.message.endswith(".")
    return error


def samples(pcm: bytes) -> np.ndarray:
    return np.frombuffer(pcm, "<i2").astype(float) / 32768


def pitch_hz(pcm: bytes, rate_hz: int) -> float:
    middle = samples(pcm)[rate_hz // 2 : -rate_hz // 2]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    return float(np.argmax(spectrum)) * rate_hz / len(middle)


def loudness(pcm: bytes) -> float:
    return float(np.sqrt(np.mean(samples(pcm) ** 2)))


# --- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAGIC)
async def test_every_format_says_what_it_is_and_can_be_decoded(pool: MediaPool, name: str) -> None:
    data = await encoded(pool, tone(3), name)
    start, media_type = MAGIC[name]
    assert data.startswith(start)
    assert sniff(data) == media_type
    heard = await joined(pool.decode_audio(data))
    assert len(heard) / 32_000 == pytest.approx(3, abs=0.15)
    assert pitch_hz(heard, 16_000) == pytest.approx(440, abs=2)
    assert loudness(heard) == pytest.approx(0.2 / 2**0.5, rel=0.1)


async def test_pcm_is_24_khz_whatever_it_was(pool: MediaPool) -> None:
    assert await encoded(pool, tone(1), "pcm") == tone(1)
    source = pool.encode_audio(pieces(tone(1, rate_hz=22_050)), rate_hz=22_050, format="pcm")
    heard = await joined(source)
    assert len(heard) / 48_000 == pytest.approx(1, abs=0.02)


async def test_wav_of_unknown_length_is_read_by_everybody(pool: MediaPool) -> None:
    data = await encoded(pool, tone(1), "wav")
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
        assert file.readframes(10**6) == tone(1)
    assert await joined(pool.decode_audio(data, rate_hz=RATE_HZ)) == tone(1)


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
async def test_the_first_bytes_leave_before_the_last_are_there(pool: MediaPool, name: str) -> None:
    heard = asyncio.Event()

    async def speaking() -> AsyncIterator[bytes]:
        yield tone(2)
        await heard.wait()
        yield tone(1)

    async with (
        asyncio.timeout(60),
        aclosing(
            pool.encode_audio(speaking(), rate_hz=RATE_HZ, format=name, effects=Effects(speed=1.1))
        ) as source,
    ):
        first = await anext(source)
        if name == "wav":
            first = await anext(source)
        assert first
        heard.set()
        assert await joined(source)


async def test_sound_of_any_kind_becomes_mono_at_the_rate_asked_for(pool: MediaPool) -> None:
    left_right = np.column_stack([samples(tone(1, 300, 44_100)), samples(tone(1, 300, 44_100))])
    stereo = io.BytesIO()
    with wave.open(stereo, "wb") as file:
        file.setparams((2, 2, 44_100, 0, "NONE", ""))
        file.writeframes((left_right * 32767).astype("<i2").tobytes())
    heard = await joined(pool.decode_audio(stereo.getvalue(), rate_hz=8_000))
    assert len(heard) / 16_000 == pytest.approx(1, abs=0.01)
    assert pitch_hz(heard + heard, 8_000) == pytest.approx(300, abs=2)


async def test_a_sound_comes_in_pieces(pool: MediaPool) -> None:
    found = [piece async for piece in pool.decode_audio(wav(tone(10)))]
    assert len(found) >= 8
    assert max(map(len, found)) <= 4 * 32_000


# --- effects -----------------------------------------------------------------------------------


@pytest.mark.parametrize("semitones", [-12.0, -3.0, 4.0, 12.0])
async def test_pitch_changes_and_the_length_does_not(pool: MediaPool, semitones: float) -> None:
    heard = await encoded(pool, tone(4), "pcm", Effects(pitch_semitones=semitones))
    assert pitch_hz(heard, RATE_HZ) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.01)
    assert len(heard) / 48_000 == pytest.approx(4, rel=0.03)


@pytest.mark.parametrize("speed", [0.25, 0.7, 1.5, 4.0])
async def test_speed_changes_the_length_and_not_the_pitch(pool: MediaPool, speed: float) -> None:
    heard = await encoded(pool, tone(8), "pcm", Effects(speed=speed))
    assert len(heard) / 48_000 == pytest.approx(8 / speed, rel=0.05)
    assert pitch_hz(heard, RATE_HZ) == pytest.approx(440, rel=0.01)


@pytest.mark.parametrize("gain_db", [-12.0, 6.0])
async def test_gain_is_in_decibels(pool: MediaPool, gain_db: float) -> None:
    heard = await encoded(pool, tone(2), "pcm", Effects(gain_db=gain_db))
    assert 20 * np.log10(loudness(heard) / loudness(tone(2))) == pytest.approx(gain_db, abs=0.5)


async def test_a_gain_that_would_clip_is_limited(pool: MediaPool) -> None:
    heard = await encoded(pool, tone(2, level=0.8), "pcm", Effects(gain_db=20))
    assert np.abs(samples(heard)[RATE_HZ:]).max() < 0.999
    assert pitch_hz(heard, RATE_HZ) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("effects", [Effects(speed=5), Effects(pitch_semitones=30), Effects(gain_db=99)])
async def test_effects_beyond_measure_are_refused(pool: MediaPool, effects: Effects) -> None:
    with pytest.raises(Invalid):
        await encoded(pool, tone(1), "mp3", effects)


# --- live --------------------------------------------------------------------------------------


async def _container(pool: MediaPool, name: str) -> bytes:
    ogg = await encoded(pool, tone(4), "opus")
    if name == "ogg":
        return ogg
    import av

    sink = io.BytesIO()
    with (
        av.open(io.BytesIO(ogg)) as source,
        av.open(
            sink, "w", format="webm", container_options={"live": "1", "cluster_time_limit": "100"}
        ) as output,
    ):
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return sink.getvalue()


@pytest.mark.parametrize("name", ["ogg", "webm"])
@pytest.mark.parametrize("is_named", [True, False])
async def test_live_opus_is_heard_while_it_is_spoken(pool: MediaPool, name: str, is_named: bool) -> None:
    """Nothing more is sent until what was sent is heard, but for a tenth of a second and a page."""
    data = await _container(pool, name)
    sent = heard = 0
    moved = asyncio.Event()

    async def speaking() -> AsyncIterator[bytes]:
        nonlocal sent
        step = len(data) // 40
        for at in range(0, len(data), step):
            yield data[at : at + step]
            sent = at + step
            async with asyncio.timeout(30):
                while sent / len(data) * 4 - heard / 32_000 > 0.45:
                    moved.clear()
                    await moved.wait()

    async for piece in pool.decode_live(speaking(), format=name if is_named else "opus"):  # type: ignore[arg-type]
        heard += len(piece)
        moved.set()
    assert heard / 32_000 == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 48_000])
async def test_live_pcm_of_any_rate(pool: MediaPool, rate_hz: int) -> None:
    source = pieces(tone(2, rate_hz=rate_hz), 333)
    heard = await joined(pool.decode_live(source, format="pcm", input_rate_hz=rate_hz))
    assert len(heard) / 32_000 == pytest.approx(2, abs=0.01)
    assert pitch_hz(heard, 16_000) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(("name", "silence"), [("pcmu", b"\xff"), ("pcma", b"\xd5")])
async def test_live_telephone_sound(pool: MediaPool, name: str, silence: bytes) -> None:
    source = pieces(silence * 8_000, 160)
    heard = await joined(pool.decode_live(source, format=name, input_rate_hz=8_000))  # type: ignore[arg-type]
    assert len(heard) / 32_000 == pytest.approx(1, abs=0.01)
    assert np.abs(samples(heard)).max() < 0.001


async def test_live_noise_that_is_no_sound_is_refused(pool: MediaPool) -> None:
    with pytest.raises(Invalid) as caught:
        await joined(pool.decode_live(pieces(b"hello, server" * 900), format="opus"))
    assert (caught.value.wire_code, caught.value.param) == ("invalid_audio", "audio")


# --- what is no sound --------------------------------------------------------------------------

NO_SOUND = {
    "nothing": b"",
    "one byte": b"R",
    "zip": b"PK\x03\x04" + bytes(200),
    "html": b"<!doctype html><title>x</title>",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "text in two bytes": "hello".encode("utf-16"),
    "wav header alone": wav_header(16_000, 0),
    "wav cut in its header": wav_header(16_000, 10)[:20],
    "ogg of zeros": b"OggS" + bytes(500),
    "flac of zeros": b"fLaC" + bytes(500),
    "mp4 of zeros": b"\0\0\0\x18ftypM4A " + bytes(500),
    "webm of zeros": b"\x1a\x45\xdf\xa3\x93\x42\x82\x84webm" + bytes(500),
    "id3 of zeros": b"ID3\x04\0\0\0\0\0\x0a" + bytes(500),
}


@pytest.mark.parametrize("what", NO_SOUND)
async def test_what_is_no_sound_is_refused(pool: MediaPool, what: str) -> None:
    error = await refused(pool, NO_SOUND[what])
    assert (error.http, error.wire_code) == (400, "invalid_audio")


def forged(**fields: int) -> bytes:
    """A WAV of two seconds whose header says something else."""
    told = {"tag": 1, "channels": 1, "rate": 16_000, "bytes_s": 32_000, "block": 2, "bits": 16} | fields
    form = struct.pack(
        "<4sIHHIIHH",
        b"fmt ",
        16,
        *(told[name] for name in ("tag", "channels", "rate", "bytes_s", "block", "bits")),
    )
    return (
        b"RIFF"
        + struct.pack("<I", 64_036)
        + b"WAVE"
        + form
        + b"data"
        + struct.pack("<I", 64_000)
        + tone(2, rate_hz=16_000)
    )


@pytest.mark.parametrize(
    "data",
    [
        forged(rate=1),
        forged(rate=0),
        forged(rate=0xFFFFFFFF),
        forged(channels=0xFFFF, block=0xFFFF),
        forged(channels=255, block=510),
        forged(channels=0),
        forged(bits=0),
        forged(tag=0x1234),
    ],
)
async def test_headers_that_lie_are_refused_or_harmless(pool: MediaPool, data: bytes) -> None:
    try:
        heard = await joined(pool.decode_audio(data))
    except Invalid as error:
        assert error.wire_code == "invalid_audio"
    else:
        assert len(heard) <= 64_000 * 2
    [pid] = pool.pids
    assert peak_mib(pid) < 200


def peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


@pytest.mark.parametrize("rate_hz", [1, 7, 655_350])
async def test_a_flac_with_a_forged_rate(pool: MediaPool, rate_hz: int) -> None:
    data = bytearray(await encoded(pool, tone(2), "flac"))
    packed = int.from_bytes(data[18:26], "big") & (1 << 44) - 1 | rate_hz << 44
    data[18:26] = packed.to_bytes(8, "big")
    try:
        heard = await joined(pool.decode_audio(bytes(data)))
    except InferHubError as error:
        assert error.http in (400, 413)
    else:
        assert len(heard) <= 32_000 * 3, "each frame says its rate as well"
    assert all(peak_mib(pid) < 200 for pid in pool.pids)


async def test_too_long_is_noticed_while_it_is_decoded() -> None:
    pool = MediaPool(MediaLimits(duration_s=5))
    data = wav(bytes(2 * 8_000 * 3_600), 8_000)
    heard: list[int] = []
    with pytest.raises(TooLarge) as caught:
        await count(pool.decode_audio(data[: 20 * 1024**2]), heard)
    assert caught.value.wire_code == "audio_too_long"
    assert "5 s" in caught.value.message
    assert sum(heard) <= 6 * 32_000
    await pool.close()


async def test_silence_that_is_small_does_not_fill_the_memory() -> None:
    """Half an hour in a few hundred kilobytes: it comes in pieces, so the child never holds it."""
    pool = MediaPool(MediaLimits(duration_s=500))
    data = await joined(
        pool.encode_audio(pieces(bytes(2 * 8_000 * 1_800), 65_536), rate_hz=8_000, format="flac")
    )
    assert len(data) < 1024**2
    heard: list[int] = []
    with pytest.raises(TooLarge):
        await count(pool.decode_audio(data), heard)
    assert sum(heard) <= 501 * 32_000
    assert all(peak_mib(pid) < 200 for pid in pool.pids)
    await pool.close()


async def test_too_many_bytes_and_too_many_decoded_bytes() -> None:
    pool = MediaPool(MediaLimits(input_bytes=100_000, decoded_bytes=50_000))
    assert (await refused(pool, wav(tone(3)))).wire_code == "file_too_large"
    error = await refused(pool, wav(tone(2)))
    assert (error.http, error.wire_code) == (413, "audio_too_large")
    await pool.close()


@pytest.mark.parametrize("name", MAGIC)
async def test_files_that_are_cut_off_or_damaged(pool: MediaPool, name: str) -> None:
    """What is left of them, or a refusal: never an error of ours, a crash, or more than there was."""
    data = await encoded(pool, tone(2), name)
    dice = np.random.default_rng(7)
    broken = [data[: len(data) * part // 10] for part in range(1, 10)]
    for _ in range(12):
        damaged = bytearray(data)
        for at in dice.integers(0, len(data), 40):
            damaged[at] = dice.integers(0, 256)
        broken.append(bytes(damaged))
    for file in broken:
        try:
            heard = await joined(pool.decode_audio(file))
        except InferHubError as error:
            assert error.wire_code in ("invalid_audio", "audio_too_long", "media_too_complex")
        else:
            assert 0 < len(heard) <= 32_000 * 8


async def test_the_failure_of_the_source_reaches_who_listens(pool: MediaPool) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield tone(1)
        raise Invalid("the engine stopped")

    with pytest.raises(Invalid, match="the engine stopped"):
        await joined(pool.encode_audio(failing(), rate_hz=RATE_HZ, format="mp3"))
    assert await encoded(pool, tone(1), "mp3")


@pytest.mark.parametrize("name", ["ogg2", "", "../x"])
async def test_unknown_formats_are_refused(pool: MediaPool, name: str) -> None:
    with pytest.raises(Invalid, match="one of"):
        await encoded(pool, tone(1), name)
    with pytest.raises(Invalid, match="one of"):
        await joined(pool.decode_live(pieces(b"x"), format=name))  # type: ignore[arg-type]
    assert not pool.pids
