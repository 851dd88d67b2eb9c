"""For the tests of engines that speak: sound in numbers, and somebody who listens."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from inferhub.backends.base import Backend
from inferhub.core.call import Delta, Finished
from inferhub.core.usage import Usage
from inferhub.testing.calls import make_call

RATE_HZ = 24_000
Sound = NDArray[np.float32]


async def spoken(backend: Backend, **params: Any) -> tuple[bytes, Usage]:
    """The whole file and its usage."""
    pieces: list[bytes] = []
    usage: Usage | None = None
    async for chunk in backend.run(make_call("speech", **params)):
        if isinstance(chunk, Delta):
            pieces.append(chunk.payload.data)
        else:
            assert isinstance(chunk, Finished)
            usage = chunk.usage
    assert usage is not None
    return b"".join(pieces), usage


async def heard(backend: Backend, **params: Any) -> Sound:
    """The sound itself."""
    data, _ = await spoken(backend, **{"response_format": "pcm", **params})
    return samples(data)


def samples(pcm: bytes) -> Sound:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768


def decoded(data: bytes) -> tuple[Sound, int, str]:
    """(sound, rate, codec) of any file, by a decoder that has nothing to do with who wrote it."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="s16", layout="mono")
        found = [
            part.to_ndarray().reshape(-1)
            for frame in container.decode(stream)
            for part in resampler.resample(frame)
        ]
        rate_hz, codec = stream.codec_context.sample_rate, stream.codec_context.name
    return np.concatenate(found).astype(np.float32) / 32768, rate_hz, codec


# --- measures ----------------------------------------------------------------------------------


def level(sound: Sound) -> float:
    """Root mean square of what is not silence, in decibels."""
    frames = _frames(sound, 480)
    power = (frames**2).mean(axis=1)
    return float(10 * np.log10(power[power > power.max() * 1e-3].mean()))


def voiced_s(sound: Sound) -> float:
    """Seconds from the first sound to the last."""
    frames = _frames(sound, 240)
    power = (frames**2).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 1e-3)
    return float(loud[-1] - loud[0] + 1) * 240 / RATE_HZ


def pitch_hz(sound: Sound) -> float:
    """The median of the voice's fundamental, by YIN's normalised difference over frames of 50 ms."""
    size, most, least = 1200, RATE_HZ // 60, RATE_HZ // 450
    found = []
    frames = np.lib.stride_tricks.sliding_window_view(sound, size + most)[:: size // 2]
    loudest = (frames**2).mean(axis=1).max()
    for frame in frames[(frames**2).mean(axis=1) > loudest * 0.02]:
        head = frame[:size]
        difference = np.array([((head - frame[lag : lag + size]) ** 2).sum() for lag in range(most)])
        normal = difference[1:] * np.arange(1, most) / np.maximum(np.cumsum(difference[1:]), 1e-9)
        below = np.flatnonzero(normal[least:] < 0.15)
        if below.size:
            lag = int(below[0]) + least
            while lag + 1 < normal.size and normal[lag + 1] < normal[lag]:
                lag += 1
            found.append(RATE_HZ / (lag + 1))
    return float(np.median(found))


def _frames(sound: Sound, size: int) -> Sound:
    return sound[: len(sound) // size * size].reshape(-1, size)


# --- listening ---------------------------------------------------------------------------------


class Listener:
    """Whisper base."""

    def __init__(self, folder: Path) -> None:
        from faster_whisper import WhisperModel

        self._model = WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True
        )

    def hears(self, sound: Sound, language: str) -> str:
        count = len(sound) * 2 // 3
        at_16k = np.interp(np.arange(count) * 1.5, np.arange(len(sound)), _smoothed(sound))
        segments, _ = self._model.transcribe(at_16k.astype(np.float32), language=language, beam_size=2)
        return " ".join(segment.text.strip() for segment in segments)


def _smoothed(sound: Sound) -> Sound:
    """Without what 16 kHz cannot hold."""
    taps = np.sinc((np.arange(63) - 31) * 0.62) * np.hamming(63)
    return np.convolve(sound, taps / taps.sum(), "same").astype(np.float32)


def words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFC", text.lower()).replace("-", " ").replace("’", "'")
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", plain)


def errors(wanted: Sequence[str], found: Sequence[str]) -> int:
    """Words put in, left out or changed."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Over all sentences together."""
    missed = sum(errors(words(wanted), words(found)) for wanted, found in pairs)
    return missed / sum(len(words(wanted)) for wanted, _ in pairs)
