"""The engine: Whisper in CTranslate2, through faster-whisper, in threads of its own. Files only, no network.

`recording` gives it windows, `live` the sound so far. It takes at most 30 s at once, because that is what the
model sees; longer sound is cut by `windows`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from inferhub.backends.whisper.draft import draft
from inferhub.core.errors import InferHubError, InternalError, SetupError, UpstreamFailed
from inferhub.modalities.transcription import Segment, Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE_HZ = 16_000
WINDOW_S = 30.0
Task = Literal["transcribe", "translate"]

_FALLBACK_TEMPERATURES = (0.0, 0.4, 0.8)
"""Each next one where an answer repeats itself or is improbable; more would only take longer."""
_SAMPLES = 2
_SEED = 0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hints:
    """How to listen."""

    language: str | None = None
    """One of `Engine.languages`; None finds out."""
    task: Task = "transcribe"
    prompt: str = ""
    """What was said before, or words to expect."""
    beam: int = 1
    words: bool = False
    """Whether each word gets its times; a tenth of the work more."""
    temperature: float | None = None
    """None, or 0: the most probable words, and others only where these cannot be right."""
    is_draft: bool = False
    """Of sound that goes on: a quick look with one hypothesis, nothing but the text."""


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was heard; times are seconds from the beginning of the sound that was given."""

    segments: tuple[Segment, ...]
    language: str
    language_probability: float

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()


class Stopped(Exception):
    """Raised in an engine thread whose caller is gone."""


class Engine:
    """One loaded model. Any number of `recognise` may run: they take turns."""

    def __init__(self, folder: Path, *, workers: int, threads: int, compute_type: str, device: str) -> None:
        """Blocks while it loads. Raises `SetupError`. `workers` recognise at once, with `threads` each."""
        # For the runtime's own threads, which read it when they begin: those that are idle must not spin.
        os.putenv("OMP_WAIT_POLICY", "PASSIVE")
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise SetupError(
                "Backend 'whisper' needs the package 'faster-whisper': install 'inferhub[local]'."
            ) from error
        # It tells of every window.
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)
        kind, _, index = device.partition(":")
        try:
            self._model = WhisperModel(
                str(folder),
                device=kind,
                device_index=int(index or 0),
                compute_type=compute_type,
                cpu_threads=threads,
                num_workers=workers,
                local_files_only=True,
            )
        except Exception as error:  # the engine's exceptions share no base class
            raise SetupError(
                f"{folder} is no Whisper model that can be loaded on {device} as {compute_type}: it must be "
                "a CTranslate2 folder. A model that InferHub knows by name is mended by "
                "`inferhub models pull`.",
                param="weights",
            ) from error
        self._watched = _Watched(self._model.model)
        self._model.model = self._watched
        self.is_multilingual = bool(self._watched.is_multilingual)
        self.languages: tuple[str, ...] = tuple(self._model.supported_languages)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="whisper")

    def close(self) -> None:
        """Blocks until every thread has left the engine."""
        self._threads.shutdown()

    async def recognise(self, pcm: NDArray[np.float32], hints: Hints) -> Recognition:
        """At most 30 s of mono sound at 16 kHz. Cancelled, it stops before the engine's next step."""
        return await self.work(self._recognise, pcm, hints)

    async def work(self, function: Callable[..., T], *given: Any) -> T:
        """`function` in one of the engine's threads; raises `InferHubError` only."""
        stop = threading.Event()
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._run, stop, function, *given)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop.set()
            future.cancel()  # where it has not begun
            future.add_done_callback(_forget)
            raise

    # --- in a thread ---------------------------------------------------------------------------

    def _run(self, stop: threading.Event, function: Callable[..., T], *given: Any) -> T:
        self._watched.stop_on(stop)
        try:
            return function(*given)
        except (InferHubError, Stopped):
            raise
        except (RuntimeError, ValueError) as error:
            raise UpstreamFailed("The speech recognition engine failed on this sound.") from error
        except Exception as error:
            raise InternalError from error

    def check(self) -> None:
        """Between two steps of long work in `work`: raises where nobody waits for it any more."""
        self._watched.check()

    def _recognise(self, pcm: NDArray[np.float32], hints: Hints) -> Recognition:
        import ctranslate2

        self.check()
        if hints.is_draft:
            return self._draft(pcm, hints)
        ctranslate2.set_random_seed(_SEED)
        language, probability = (hints.language, 1.0) if hints.language else self._detect(pcm)
        found, _ = self._model.transcribe(
            pcm,
            language=language,
            task=hints.task,
            beam_size=hints.beam,
            best_of=_SAMPLES,
            temperature=_temperatures(hints),
            initial_prompt=hints.prompt or None,
            condition_on_previous_text=True,
            word_timestamps=hints.words,
        )
        segments = _within(pcm.shape[0] / RATE_HZ, [_segment(n, piece) for n, piece in enumerate(found)])
        return Recognition(segments, language, round(probability, 4))

    def _draft(self, pcm: NDArray[np.float32], hints: Hints) -> Recognition:
        language = hints.language if self.is_multilingual else "en"
        heard, language, probability = draft(
            self._model, self._watched, pcm, language=language, task=hints.task
        )
        return Recognition((heard,) if heard else (), language, round(probability, 4))

    def _detect(self, pcm: NDArray[np.float32]) -> tuple[str, float]:
        """The language and how probable it is, without looking at the sound twice: encoding it is what takes
        time, and `transcribe` would do it once more."""
        from faster_whisper.audio import pad_or_trim

        if not self.is_multilingual:
            return "en", 1.0
        # Without its last frame, as `transcribe` has it.
        encoded = self._model.encode(pad_or_trim(self._model.feature_extractor(pcm)[:, :-1]))
        token, probability = self._watched.detect_language(encoded)[0][0]
        self._watched.encoded(encoded)
        return str(token[2:-2]), float(probability)


class _Watched:
    """The model, which nobody gets to call whose caller is gone."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._local = threading.local()

    def stop_on(self, stop: threading.Event) -> None:
        self._local.stop = stop
        self._local.output = None

    def check(self) -> None:
        stop: threading.Event | None = getattr(self._local, "stop", None)
        if stop is not None and stop.is_set():
            raise Stopped

    def encoded(self, output: Any) -> None:
        """What the next `encode` of this thread will be asked for."""
        self._local.output = output

    def encode(self, *given: Any, **named: Any) -> Any:
        self.check()
        output = getattr(self._local, "output", None)
        self._local.output = None
        return self._model.encode(*given, **named) if output is None else output

    def __getattr__(self, name: str) -> Any:
        # The engine looks its model up before each step: encode, generate, align.
        self.check()
        return getattr(self._model, name)


def _temperatures(hints: Hints) -> list[float]:
    return [hints.temperature] if hints.temperature else list(_FALLBACK_TEMPERATURES)


def _forget(future: asyncio.Future[Any]) -> None:
    """Nobody reads what becomes of it."""
    if not future.cancelled():
        future.exception()


def _segment(number: int, piece: Any) -> Segment:
    words = None
    if piece.words is not None:
        words = [
            Word(word.word, float(word.start), float(word.end), round(float(word.probability), 4))
            for word in piece.words
        ]
    return Segment(
        id=number,
        start=float(piece.start),
        end=float(piece.end),
        text=piece.text,
        words=words,
        tokens=list(piece.tokens),
        temperature=float(piece.temperature),
        avg_logprob=float(piece.avg_logprob),
        compression_ratio=float(piece.compression_ratio),
        no_speech_prob=float(piece.no_speech_prob),
    )


def _within(duration_s: float, segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Times that never go back and never pass the end of the sound, which the model's own now and then do."""
    at = 0.0
    for segment in segments:
        inner = 0.0
        for word in segment.words or ():
            word.start = min(max(word.start, inner, at), duration_s)
            word.end = inner = min(max(word.end, word.start), duration_s)
        if segment.words:
            segment.start, segment.end = segment.words[0].start, segment.words[-1].end
        segment.start = min(max(segment.start, at), duration_s)
        segment.end = at = min(max(segment.end, segment.start), duration_s)
    return tuple(segments)
