"""What upstreams hand over, in the form that the client asked for: pictures and sound.

Shared by remote backends. Bytes that are in that form already stay as they are; others go through the media
room, because an upstream's bytes are no more trusted than a client's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from inferhub.core.call import Media
from inferhub.core.errors import RequestError, UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.media import Effects, MediaPool, inspect_image, longest_ms, sniff
from inferhub.media.frames import length_ms
from inferhub.modalities.image import ImageDelta, ImageRequest
from inferhub.modalities.speech import SpeechDelta, SpeechRequest

_KINDS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_PIECE_BYTES = 48_000


async def finished_picture(
    pool: MediaPool, data: bytes, request: ImageRequest, index: int, revised_prompt: str | None = None
) -> ImageDelta:
    """Raises `UpstreamFailed` for what is no picture."""
    wanted = request.output_format
    try:
        if sniff(data) != _KINDS[wanted]:
            picture = await pool.decode_image(data)
            data = await pool.encode_image(picture, wanted, quality=request.output_compression or None)
        head = inspect_image(data)
    except RequestError as error:
        raise UpstreamFailed("The upstream sent something that is not a picture.") from error
    return ImageDelta("image", index, data, head.width, head.height, revised_prompt=revised_prompt)


def painted(deltas: Sequence[ImageDelta], tokens: Usage) -> Usage:
    """What these pictures are on the bill."""
    return Usage(
        tokens.input_tokens,
        tokens.output_tokens,
        images=len(deltas),
        pixels=sum(delta.width * delta.height for delta in deltas),
    )


async def spoken(
    pool: MediaPool, pcm: AsyncIterator[bytes], rate_hz: int, request: SpeechRequest, effects: Effects
) -> AsyncGenerator[SpeechDelta]:
    """Mono s16le as the file that was asked for, while it is encoded."""
    taken_bytes = told_ms = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal taken_bytes
        async for piece in pcm:
            taken_bytes += len(piece)
            yield piece

    file = pool.encode_audio(counted(), rate_hz=rate_hz, format=request.response_format, effects=effects)
    async with aclosing(file):
        async for data in file:
            taken_ms = round(taken_bytes * 500 / rate_hz / effects.speed)
            yield SpeechDelta(data, taken_ms - told_ms)
            told_ms = taken_ms


async def pieces_of(data: bytes) -> AsyncGenerator[bytes]:
    """As the encoder takes them."""
    for start in range(0, len(data), _PIECE_BYTES):
        yield data[start : start + _PIECE_BYTES]


def with_length(usage: Usage, media: tuple[Media, ...]) -> Usage:
    """Where the upstream did not say how long the recording is, what its bytes say."""
    if usage.audio_ms:
        return usage
    sound = next((file.data for file in media if file.field == "file"), b"")
    known_ms = length_ms(sound)
    if known_ms is not None:
        return replace(usage, audio_ms=known_ms, source="reported")
    return replace(usage, audio_ms=longest_ms(sound), source="estimated")
