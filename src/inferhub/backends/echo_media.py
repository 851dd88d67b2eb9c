"""How the echo hears, speaks, paints and sees: small and honest, so that tests need no weights.

`echo` calls it. It says how long a sound is and what its hash is, speaks a tone for each character, and
paints one colour made of the prompt: nothing that anybody could take for a model's work.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from hashlib import sha256

from inferhub.backends.finishing import finished_picture, painted, spoken
from inferhub.core.call import Call, Delta, Finished, Frame
from inferhub.core.errors import Invalid
from inferhub.core.models import Voice
from inferhub.core.usage import Usage
from inferhub.media import Effects, MediaPool, inspect_image, longest_ms, sniff
from inferhub.media.frames import length_ms
from inferhub.modalities.image import ImageDelta, ImageRequest, size_of
from inferhub.modalities.speech import DEFAULT_VOICE, SpeechRequest, shares
from inferhub.modalities.transcription import Live, Segment, TranscriptDelta, TranscriptionRequest, Word
from inferhub.modalities.transcription.deltas import Kind
from inferhub.modalities.vision import Reply, VisionDelta, VisionRequest, no_picture

RATE_HZ = 24_000
CHARACTER_MS = 20
"""How long each character sounds."""
SIDE = 64
"""Of a picture whose size nobody names."""
VOICES = (Voice("low", "mul"), Voice("high", "mul"))
FEATURES = {
    "transcription": frozenset({"stream", "translate", "diarize", "word_timestamps", "live"}),
    "speech": frozenset({"stream", "pitch", "gain"}),
    "image": frozenset({"stream", "generate", "edit", "variation", "mask", "seed", "n"}),
    "vision": frozenset({"description", "question"}),
}
_PITCHES_HZ = {"low": 220.0, "high": 440.0}
_PREVIEWS = 3


class EchoMedia:
    """One loaded echo's."""

    def __init__(self) -> None:
        self._pool = MediaPool()

    async def close(self) -> None:
        await self._pool.close()

    def answers(self, call: Call) -> AsyncGenerator[Delta | Finished] | None:
        """None for a call of another modality."""
        match call.request:
            case TranscriptionRequest():
                return _live(call, call.incoming) if call.incoming is not None else _hear(call)
            case SpeechRequest():
                return self._speak(call.request)
            case ImageRequest():
                return self._paint(call)
            case VisionRequest():
                return _see(call)
        return None

    async def _speak(self, request: SpeechRequest) -> AsyncGenerator[Delta | Finished]:
        pitch_hz = _PITCHES_HZ[_voice(request)] * 2 ** ((request.pitch or 0.0) / 12)
        effects = Effects(speed=request.speed, gain_db=request.gain_db or 0.0)
        heard_ms = 0
        sound = spoken(self._pool, _tones(request.input, pitch_hz), RATE_HZ, request, effects)
        async with aclosing(sound):
            async for piece in sound:
                heard_ms += piece.audio_ms
                yield Delta(piece)
        yield Finished(Usage(characters=len(request.input), audio_ms=heard_ms))

    async def _paint(self, call: Call) -> AsyncGenerator[Delta | Finished]:
        request: ImageRequest = call.request
        finished: list[ImageDelta] = []
        for index in range(request.n):
            width, height = size_of(request) or (SIDE, SIDE)
            seed = f"{request.prompt}|{request.seed}|{index}".encode()
            colour = sha256(seed + b"".join(file.data for file in call.media)).digest()[:3]
            if index == 0:
                for step in range(request.partial_images or 0):
                    yield Delta(ImageDelta("progress", step=step, steps=_PREVIEWS))
                    shade = bytes(part * (step + 1) // (_PREVIEWS + 1) for part in colour)
                    preview = png(width, height, shade)
                    delta = await finished_picture(self._pool, preview, request, step)
                    delta.kind = "partial"
                    yield Delta(delta)
            delta = await finished_picture(self._pool, png(width, height, colour), request, index)
            finished.append(delta)
            yield Delta(delta)
        yield Finished(painted(finished, Usage()))


def _voice(request: SpeechRequest) -> str:
    wanted = next(iter(shares(request)))
    if wanted == DEFAULT_VOICE:
        return VOICES[0].id
    if wanted not in _PITCHES_HZ:
        raise Invalid(f"No voice is called {wanted!r}. Voices: {', '.join(_PITCHES_HZ)}.", param="voice")
    return wanted


async def _tones(text: str, pitch_hz: float) -> AsyncGenerator[bytes]:
    """One tone a character, a piece for each word; blanks are silent."""
    samples = RATE_HZ * CHARACTER_MS // 1000
    for word in text.split(" "):
        piece = b""
        for character in word:
            step = 2 * math.pi * pitch_hz * (1 + ord(character) % 24 / 24) / RATE_HZ
            piece += struct.pack(f"<{samples}h", *(int(9000 * math.sin(step * at)) for at in range(samples)))
        yield piece + bytes(samples * 2)


# --- hearing -------------------------------------------------------------------------------------


async def _hear(call: Call) -> AsyncGenerator[Delta | Finished]:
    """`1500 ms, sha256 0123456789ab`, a word at a time."""
    request: TranscriptionRequest = call.request
    sound = next((file.data for file in call.media if file.field == "file"), b"")
    kind = sniff(sound)
    if kind is None or not kind.startswith(("audio/", "video/")):
        raise Invalid("'file' is not a sound that can be read.", param="file", code="invalid_audio")
    known_ms = length_ms(sound)
    heard_ms = longest_ms(sound) if known_ms is None else known_ms
    yield Delta(TranscriptDelta("about", language=request.language or "en", duration_s=heard_ms / 1000))
    words = f"{heard_ms} ms, sha256 {sha256(sound).hexdigest()[:12]}".split(" ")
    for place, delta in enumerate(_segments(request, words, heard_ms / 1000)):
        yield Delta(delta, more=place + 1 < len(words))
    yield Finished(Usage(audio_ms=heard_ms, source="estimated" if known_ms is None else "reported"))


def _segments(
    request: TranscriptionRequest, words: Sequence[str], duration_s: float
) -> Sequence[TranscriptDelta]:
    step = duration_s / len(words)
    wants_speakers = request.diarize or request.response_format == "diarized_json"
    return [
        TranscriptDelta(
            "segment",
            segment=Segment(
                place,
                place * step,
                (place + 1) * step,
                f" {word}",
                "A" if wants_speakers else None,
                [Word(word, place * step, (place + 1) * step)],
            ),
        )
        for place, word in enumerate(words)
    ]


async def _live(call: Call, incoming: AsyncIterator[Frame]) -> AsyncGenerator[Delta | Finished]:
    """How much was heard so far, after every frame; the frame `commit` ends an utterance."""
    live = call.request.live or Live()
    bytes_s = 8_000 if live.format.startswith("g711") else live.rate_hz * 2
    taken = before = utterance = 0

    def heard(kind: Kind, *, is_final: bool = False) -> Delta:
        at_s = taken / bytes_s
        text = f"{round((taken - before) / bytes_s * 1000)} ms"
        segment = Segment(utterance, before / bytes_s, at_s, text) if is_final else None
        spoken_text = text if kind == "partial" else ""
        return Delta(
            TranscriptDelta(kind, segment, spoken_text, duration_s=at_s, utterance=utterance, at_s=at_s)
        )

    yield Delta(TranscriptDelta("about", language=call.request.language or ""))
    async for frame in incoming:
        if frame.event == "commit" and taken > before:
            yield heard("committed")
            yield heard("final", is_final=True)
            before, utterance = taken, utterance + 1
        elif not frame.event and frame.data:
            if taken == before:
                yield heard("speech_started")
            taken += len(frame.data)
            if live.partials:
                yield heard("partial")
    if taken > before:
        yield heard("final", is_final=True)
    yield Finished(Usage(audio_ms=round(taken / bytes_s * 1000)))


# --- seeing and painting -------------------------------------------------------------------------


async def _see(call: Call) -> AsyncGenerator[Delta | Finished]:
    """What the header of the picture says."""
    request: VisionRequest = call.request
    data = next((file.data for file in call.media if file.field == "image"), None)
    if data is None:
        data = _enclosed(request.image or "")
    head = inspect_image(data)
    said = f"A picture of {head.width} by {head.height} pixels, {head.kind}, {len(data)} bytes."
    reply = Reply(said, said, "description", 1.0) if request.question else None
    yield Delta(VisionDelta(head.width, head.height, description=said, reply=reply))
    yield Finished(Usage(images=1, pixels=head.width * head.height))


def _enclosed(url: str) -> bytes:
    head, _, data = url.partition(";base64,")
    try:
        if head.startswith("data:"):
            return base64.b64decode(data, validate=True)
    except binascii.Error:
        pass
    raise no_picture()


def png(width: int, height: int, colour: bytes) -> bytes:
    """Of one colour, given as three bytes."""
    rows = (b"\0" + colour * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
