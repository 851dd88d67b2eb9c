"""`MediaPool`: jobs for child processes that decode and encode, a bounded number at once.

Backends, the pipeline and the gateway hold one each. Cheap to make: a child starts with the first job that
needs one, and ends after a while without any. A job that is cancelled takes its child with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Literal, TypeVar

from inferhub.core.errors import (
    Draining,
    InferHubError,
    InternalError,
    Invalid,
    Overloaded,
    SetupError,
    TooLarge,
)
from inferhub.media.kinds import IMAGES, SOUNDS, sniff
from inferhub.media.limits import GAIN_DB, PITCH_SEMITONES, SPEED, Effects, MediaLimits, Picture
from inferhub.media.messages import (
    DecodeAudio,
    DecodeImage,
    DecodeLive,
    EncodeAudio,
    EncodeImage,
    Kind,
    Size,
    Task,
    Upright,
    Warm,
    decode_size,
)
from inferhub.media.metadata import check_head, inspect_image, stripped
from inferhub.media.process import Child, ChildDied, Input
from inferhub.media.wav import wav_header

_log = logging.getLogger(__name__)

AUDIO_FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
IMAGE_FORMATS = ("png", "jpeg", "webp")
LIVE_FORMATS = ("pcm", "pcmu", "pcma", "opus", "ogg", "webm")
PCM_RATE_HZ = 24_000
"""Of the format `pcm`, which says nothing of itself."""

_Found = TypeVar("_Found")
_NONE = Effects()
_LARGE_BYTES = 256 * 1024
_SOUND_WORDS = "flac, m4a, mp3, mp4, ogg, wav or webm"
_IMAGE_WORDS = "PNG, JPEG, WebP, GIF or BMP"


class MediaPool:
    """All methods raise `Invalid` for what is no sound or picture, and `TooLarge` for too much of it."""

    def __init__(self, limits: MediaLimits | None = None) -> None:
        self._limits = limits or MediaLimits()
        self._jobs = asyncio.Semaphore(self._limits.jobs_at_once)
        self._streams = asyncio.Semaphore(self._limits.streams_at_once)
        self._waiting = 0
        self._idle: dict[Child, asyncio.TimerHandle] = {}
        self._busy: set[Child] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def pids(self) -> frozenset[int]:
        """Of the children that live."""
        return frozenset(child.pid for child in (*self._idle, *self._busy) if child.is_alive)

    # --- sound ---------------------------------------------------------------------------------

    async def decode_audio(
        self, data: bytes, *, rate_hz: int = 16_000, param: str = "file"
    ) -> AsyncGenerator[bytes, None]:
        """Mono s16le of any sound, in pieces of about a second, as they are decoded."""
        self._check_size(data, param)
        container = SOUNDS.get(sniff(data) or "")
        if container is None:
            raise Invalid(
                f"'{param}' is not a sound that can be read: send {_SOUND_WORDS}.",
                param=param,
                code="invalid_audio",
            )
        async with aclosing(self._run(DecodeAudio(container, rate_hz), data, param)) as answers:
            async for _, piece in answers:
                yield piece

    async def decode_live(
        self,
        pieces: AsyncIterator[bytes],
        *,
        format: Literal["pcm", "pcmu", "pcma", "opus", "ogg", "webm"],  # noqa: A002
        input_rate_hz: int = 16_000,
        rate_hz: int = 16_000,
        param: str = "audio",
    ) -> AsyncGenerator[bytes, None]:
        """Mono s16le of a sound that is still being made, as soon as there is any.

        `opus` is Opus in Ogg or in WebM, whichever the first bytes say; `pcm` is mono s16le at
        `input_rate_hz`, which the two kinds of G.711 may have as well.
        """
        if format not in LIVE_FORMATS:
            raise _unknown(format, LIVE_FORMATS, param)
        task = DecodeLive(format, input_rate_hz, rate_hz)
        async with aclosing(self._run(task, pieces, param, is_stream=True)) as answers:
            async for _, piece in answers:
                yield piece

    async def encode_audio(
        self,
        pcm: AsyncIterator[bytes],
        *,
        rate_hz: int,
        format: str,  # noqa: A002
        effects: Effects = _NONE,
    ) -> AsyncGenerator[bytes, None]:
        """Mono s16le as a file of that format, whose first bytes leave before the last are there.

        `pcm` comes out at 24 kHz, everything else at the rate nearest to `rate_hz` that the format has.
        """
        if format not in AUDIO_FORMATS:
            raise _unknown(format, AUDIO_FORMATS, "response_format")
        _check_effects(effects)
        if effects.are_none and (format == "wav" or (format == "pcm" and rate_hz == PCM_RATE_HZ)):
            # Nothing to compute: no process is needed, and the first byte is there at once.
            if format == "wav":
                yield wav_header(rate_hz)
            async for piece in pcm:
                yield piece
            return
        if format == "wav":
            yield wav_header(rate_hz)
        task = EncodeAudio(format, rate_hz, effects)
        async with aclosing(self._run(task, pcm, "response_format", is_stream=True)) as answers:
            async for _, piece in answers:
                yield piece

    # --- pictures ------------------------------------------------------------------------------

    async def decode_image(
        self, data: bytes, *, max_side: int | None = None, param: str = "image"
    ) -> Picture:
        """The first frame, upright, in colour; made smaller where a side is longer than `max_side`."""
        self._check_image(data, param)
        size = Size(0, 0, has_alpha=False)
        pixels = bytearray()
        async with aclosing(self._run(DecodeImage(max_side), data, param)) as answers:
            async for kind, payload in answers:
                if kind is Kind.NOTE:
                    size = decode_size(payload)
                else:
                    pixels += payload
        colours = size.width * size.height * 3
        view = memoryview(pixels)
        return Picture(
            size.width, size.height, bytes(view[:colours]), bytes(view[colours:]) if size.has_alpha else None
        )

    async def encode_image(
        self,
        picture: Picture,
        format: str,  # noqa: A002
        *,
        quality: int | None = None,
    ) -> bytes:
        """`png`, `jpeg` or `webp`; `quality` from 1 to 100 is for the latter two."""
        if format not in IMAGE_FORMATS:
            raise _unknown(format, IMAGE_FORMATS, "output_format")
        task = EncodeImage(format, quality, picture.width, picture.height, picture.alpha is not None)
        return await self._all(task, picture.rgb + (picture.alpha or b""), "output_format")

    async def turn_upright(self, data: bytes, *, param: str = "image") -> bytes:
        """A picture in its own format, turned as its metadata says, without any metadata."""
        self._check_image(data, param)
        return await self._all(Upright(), data, param)

    async def clean_image(self, data: bytes, *, param: str = "image") -> bytes:
        """A PNG, JPEG, WebP or GIF that may be passed on: within the limits, upright, and without metadata.

        The very same bytes where there is nothing to do, and no pixel is changed unless it has to be turned.
        """
        self._check_size(data, param)
        try:
            head = await _aside(inspect_image, data)
            check_head(head, self._limits)
        except Invalid as error:
            error.param = param
            raise
        if head.orientation != 1 and head.frames == 1:
            # A server without decoders leaves the one entry that says how to turn it.
            with contextlib.suppress(SetupError):
                return await self.turn_upright(data, param=param)
        return await _aside(lambda data: stripped(data, head, keep_orientation=True), data)

    # --- children ------------------------------------------------------------------------------

    async def warm(self, what: Literal["audio", "image"]) -> None:
        """Start a child that has its decoders ready: the first job saves some 200 ms."""
        await self._all(Warm(what), b"", "")

    async def close(self) -> None:
        """End every child, those that work included. No job is taken afterwards."""
        self._is_closed = True
        for timer in self._idle.values():
            timer.cancel()
        children = [*self._idle, *self._busy]
        self._idle.clear()
        await asyncio.gather(*(child.end() for child in children), *self._ending)

    async def _all(self, task: Task, given: bytes, param: str) -> bytes:
        found = bytearray()
        async with aclosing(self._run(task, given, param)) as answers:
            async for _, payload in answers:
                found += payload
        return bytes(found)

    async def _run(
        self, task: Task, given: Input, param: str, *, is_stream: bool = False
    ) -> AsyncGenerator[tuple[Kind, bytes], None]:
        async with self._child(self._streams if is_stream else self._jobs) as child:
            try:
                async with aclosing(child.run(task, self._limits, given)) as answers:
                    async for answer in answers:
                        yield answer
            except ChildDied as death:
                raise self._translated(death, task, child, param) from death
            except InferHubError as error:
                if error.param is None and isinstance(error, Invalid | TooLarge):
                    error.param = param
                raise

    def _translated(self, death: ChildDied, task: Task, child: Child, param: str) -> InferHubError:
        if self._is_closed:
            return Draining("Media are not decoded any more: the server is leaving.")
        _log.warning("The media process %s %s during %s", child.pid, death, type(task).__name__)
        if isinstance(task, EncodeAudio | EncodeImage | Warm):
            return InternalError("The process that encodes media died; its log line says how.")
        code = "invalid_image" if isinstance(task, DecodeImage | Upright) else "invalid_audio"
        return Invalid(
            f"'{param}' could not be decoded: the decoder gave up within its limits of time and memory.",
            param=param,
            code=code,
        )

    @asynccontextmanager
    async def _child(self, room: asyncio.Semaphore) -> AsyncIterator[Child]:
        await self._enter(room)
        try:
            child = self._taken() or await Child.start()
            self._busy.add(child)
            try:
                yield child
            finally:
                await self._put_back(child)
        finally:
            room.release()

    async def _enter(self, room: asyncio.Semaphore) -> None:
        if self._is_closed:
            raise Draining("Media are not decoded any more: the server is leaving.")
        if room.locked() and self._waiting >= self._limits.waiting:
            raise Overloaded(
                "Too many sounds and pictures wait to be decoded.", retry_after_s=1.0, reason="media_full"
            )
        self._waiting += 1
        try:
            async with asyncio.timeout(self._limits.wait_s):
                await room.acquire()
        except TimeoutError:
            raise Overloaded(
                "Other sounds and pictures took too long to be decoded.",
                retry_after_s=1.0,
                reason="media_full",
            ) from None
        finally:
            self._waiting -= 1

    def _taken(self) -> Child | None:
        """The child that was used last: its memory is warm, and those that are not needed may end."""
        while self._idle:
            child, timer = self._idle.popitem()
            timer.cancel()
            if child.is_alive:
                return child
            self._end_soon(child)
        return None

    async def _put_back(self, child: Child) -> None:
        is_kept = child.is_clean and child.is_alive and child.jobs_done < self._limits.jobs_per_child
        try:
            if self._is_closed or not is_kept:
                await child.end()
                return
        finally:
            self._busy.discard(child)
        loop = asyncio.get_running_loop()
        self._idle[child] = loop.call_later(self._limits.idle_s, self._retire, child)

    def _retire(self, child: Child) -> None:
        if self._idle.pop(child, None) is not None:
            self._end_soon(child)

    def _end_soon(self, child: Child) -> None:
        ending = asyncio.get_running_loop().create_task(child.end(), name=f"end {child.pid}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    # --- checks --------------------------------------------------------------------------------

    def _check_size(self, data: bytes, param: str) -> None:
        if len(data) > self._limits.input_bytes:
            raise TooLarge(
                f"'{param}' has {len(data)} bytes; at most {self._limits.input_bytes} are allowed.",
                param=param,
                code="file_too_large",
            )

    def _check_image(self, data: bytes, param: str) -> None:
        self._check_size(data, param)
        if sniff(data) not in IMAGES:
            raise Invalid(
                f"'{param}' is not a picture that can be read: send {_IMAGE_WORDS}.",
                param=param,
                code="invalid_image",
            )


async def _aside(function: Callable[[bytes], _Found], data: bytes) -> _Found:
    """In a thread where it would hold up the event loop for longer than a token."""
    return await asyncio.to_thread(function, data) if len(data) > _LARGE_BYTES else function(data)


def _unknown(given: str, allowed: tuple[str, ...], param: str) -> Invalid:
    return Invalid(f"'{param}' cannot be {given!r}; it is one of {', '.join(allowed)}.", param=param)


def _check_effects(effects: Effects) -> None:
    for name, (least, most) in (("pitch_semitones", PITCH_SEMITONES), ("speed", SPEED), ("gain_db", GAIN_DB)):
        if not least <= getattr(effects, name) <= most:
            raise Invalid(f"'{name}' must be between {least:g} and {most:g}.", param=name)
