"""A recording, from the file that came with a call to the segments of its answer, window by window.

`backend` runs it. Decoding belongs to the media room and recognition to `engine`; this is what happens when.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from inferhub.backends.whisper.diarize import Diarizer, Turn, by_speaker
from inferhub.backends.whisper.engine import RATE_HZ, Engine, Hints, Recognition
from inferhub.backends.whisper.vad import STEP, VoiceDetector
from inferhub.backends.whisper.windows import Window, windows
from inferhub.core.call import Delta, Finished, Media
from inferhub.core.usage import Usage
from inferhub.media import MediaPool
from inferhub.modalities.transcription import (
    Segment,
    TranscriptDelta,
    TranscriptionRequest,
    wants_speakers,
    wants_words,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LISTEN_STEPS = 1000
"""Of 32 ms, between two looks at whether anybody still waits."""
_LOST = 0.5
"""What was said before is no help where it was guessed at a higher temperature."""


class Recorder:
    """Transcribes recordings with one loaded model."""

    def __init__(
        self,
        engine: Engine,
        detector: VoiceDetector,
        diarizer: Diarizer | None,
        media: MediaPool,
    ) -> None:
        self._engine = engine
        self._detector = detector
        self._diarizer = diarizer
        self._media = media

    async def transcribe(
        self, request: TranscriptionRequest, recording: Media, hints: Hints
    ) -> AsyncGenerator[Delta | Finished, None]:
        """Everything that the answer consists of. `hints` are those of the request."""
        samples = await self._decode(recording)
        duration_s = len(samples) / RATE_HZ
        heard = await self._engine.work(self._listen, samples)
        found = list(windows(heard, keep_silence=request.vad is False))
        turns: Sequence[Turn] | None = None
        if wants_speakers(request) and self._diarizer is not None:
            turns = await self._engine.work(
                self._diarizer.turns, samples, heard, request.num_speakers, self._engine.check
            )
        if not found:
            yield Delta(_about(hints.language or "", None, duration_s))
        count = 0
        for number, window in enumerate(found):
            recognised = await self._engine.recognise(window.cut(samples), hints)
            if not number:
                yield Delta(_about(recognised.language, recognised.language_probability, duration_s))
            for segment in _placed(recognised, window, duration_s):
                for piece in [segment] if turns is None else by_speaker(segment, turns):
                    shown = _numbered(piece, count, window, request)
                    count += 1
                    yield Delta(TranscriptDelta("segment", segment=shown, duration_s=duration_s))
            hints = _following(hints, recognised, request.prompt or "")
        yield Finished(Usage(audio_ms=round(duration_s * 1000)))

    async def _decode(self, recording: Media) -> NDArray[np.int16]:
        import numpy as np

        sound = bytearray()
        async with aclosing(self._media.decode_audio(recording.data, rate_hz=RATE_HZ)) as pieces:
            async for piece in pieces:
                sound += piece
        return np.frombuffer(sound, dtype="<i2")

    def _listen(self, samples: NDArray[np.int16]) -> list[float]:
        """In an engine thread: how probable speech is, every 32 ms."""
        import numpy as np

        whole = np.pad(samples, (0, -len(samples) % STEP))
        stream = self._detector.stream()
        heard: list[float] = []
        for first in range(0, len(whole), STEP * _LISTEN_STEPS):
            self._engine.check()
            heard += stream.hear(whole[first : first + STEP * _LISTEN_STEPS])
        return heard


def _about(language: str, probability: float | None, duration_s: float) -> TranscriptDelta:
    return TranscriptDelta(
        "about", language=language, language_probability=probability, duration_s=duration_s
    )


def _following(hints: Hints, recognised: Recognition, prompt: str) -> Hints:
    """For the next window: the language that was found, and what was said just before."""
    last = recognised.segments[-1] if recognised.segments else None
    said = recognised.text if last is not None and last.temperature <= _LOST else ""
    return replace(hints, language=recognised.language, prompt=f"{prompt} {said}".strip())


def _placed(recognised: Recognition, window: Window, duration_s: float) -> Sequence[Segment]:
    """The segments with the times of the recording."""
    for segment in recognised.segments:
        for item in (segment, *(segment.words or ())):
            start_s, end_s = window.time(item.start), window.time(item.end, is_end=True)
            item.start = round(min(start_s, duration_s), 3)
            # A moment on the seam of two spans is the end of one and the beginning of the other.
            item.end = round(min(max(end_s, start_s), duration_s), 3)
    return recognised.segments


def _numbered(segment: Segment, number: int, window: Window, request: TranscriptionRequest) -> Segment:
    words = segment.words if wants_words(request) else None
    seek = round(window.time(0.0) * 100)
    return msgspec.structs.replace(segment, id=number, seek=seek, words=words)
