"""Sound of every kind as samples at 16 kHz: rates, G.711, halves of samples, and streams that end early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from inferhub.backends.whisper.intake import hear, until_done
from inferhub.backends.whisper.resample import Resampler
from inferhub.core.call import Frame
from inferhub.core.errors import Invalid
from inferhub.media import MediaPool
from inferhub.modalities.transcription import Live

Samples = NDArray[np.int16]


def tone(rate_hz: int, seconds: float = 1.0, hertz: float = 440.0) -> Samples:
    at = np.arange(round(rate_hz * seconds)) / rate_hz
    return (10_000 * np.sin(2 * np.pi * hertz * at)).astype(np.int16)


async def frames(pieces: Sequence[bytes | str]) -> AsyncIterator[Frame]:
    for piece in pieces:
        yield Frame(event=piece) if isinstance(piece, str) else Frame(piece)


async def heard(live: Live, pieces: Sequence[bytes | str]) -> list[Samples | str]:
    media = MediaPool()
    try:
        return [item async for item in hear(frames(pieces), live, media)]
    finally:
        await media.close()


def joined(items: Sequence[Samples | str]) -> Samples:
    return np.concatenate([item for item in items if not isinstance(item, str)])


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("rate_hz", [8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000, 23_457])
async def test_pcm_of_any_rate_keeps_its_pitch_and_loudness(rate_hz: int) -> None:
    items = await heard(Live(rate_hz=rate_hz), cut(tone(rate_hz).tobytes(), 1234))
    found = joined(items).astype(float)
    expected = tone(16_000)[: len(found)].astype(float)
    assert abs(len(found) - 16_000) <= 2
    assert np.abs(found - expected)[300:-300].max() < 20


@pytest.mark.parametrize("rate_hz", [11_025, 48_000])
def test_resampling_does_not_depend_on_how_the_sound_was_cut(rate_hz: int) -> None:
    sound = tone(rate_hz, 0.5)
    whole = Resampler(rate_hz, 16_000)
    pieces = Resampler(rate_hz, 16_000)
    bits = [pieces.take(sound[at : at + 77]) for at in range(0, len(sound), 77)]
    assert np.array_equal(
        np.concatenate([whole.take(sound), whole.rest()]), np.concatenate([*bits, pieces.rest()])
    )


def test_what_16_khz_cannot_hold_is_left_out() -> None:
    found = Resampler(48_000, 16_000).take(tone(48_000, hertz=11_000))
    assert np.abs(found[300:-300]).max() < 20


async def test_a_frame_may_end_in_the_middle_of_a_sample() -> None:
    sound = tone(16_000, 0.1)
    assert np.array_equal(joined(await heard(Live(), cut(sound.tobytes(), 3))), sound)


@pytest.mark.parametrize(("kind", "codec"), [("g711_ulaw", "pcm_mulaw"), ("g711_alaw", "pcm_alaw")])
async def test_g711_is_what_a_decoder_that_is_not_ours_makes_of_it(kind: str, codec: str) -> None:
    every = bytes(range(256))
    decoder = av.CodecContext.create(codec, "r")
    decoder.sample_rate, decoder.layout = 8000, "mono"
    (frame,) = decoder.decode(av.Packet(every))
    expected = Resampler(8000, 16_000).take(frame.to_ndarray().reshape(-1))
    items = await heard(Live(format=kind), [every])  # type: ignore[arg-type]
    assert np.array_equal(items[0], expected)


async def test_events_keep_their_place() -> None:
    sound = tone(16_000, 0.1).tobytes()
    items = await heard(Live(), [sound, "commit", sound, "clear"])
    assert [item if isinstance(item, str) else len(item) for item in items] == [
        1600,
        "commit",
        1600,
        "clear",
        0,
    ]


async def test_opus_that_is_none_is_refused() -> None:
    with pytest.raises(Invalid):
        await heard(Live(format="opus"), [b"this is not Opus, whatever it is" * 100])


async def test_what_was_put_out_before_a_failure_arrives_and_then_the_failure() -> None:
    out: asyncio.Queue[int] = asyncio.Queue()

    async def work() -> None:
        await out.put(1)
        await out.put(2)
        raise ZeroDivisionError

    items = until_done(work(), out)
    assert [await anext(items), await anext(items)] == [1, 2]
    with pytest.raises(ZeroDivisionError):
        await anext(items)


async def test_work_that_waits_for_room_ends_when_nobody_reads_any_more() -> None:
    out: asyncio.Queue[int] = asyncio.Queue(1)
    has_ended = asyncio.Event()

    async def work() -> None:
        try:
            while True:
                await out.put(1)
        finally:
            has_ended.set()

    items = until_done(work(), out)
    assert await anext(items) == 1
    await items.aclose()
    assert has_ended.is_set()
