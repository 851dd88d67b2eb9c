"""Who spoke when: voices turned into vectors, like ones put together, turns read off.

`recording` and `voices` call it, in an engine thread. It knows no words until `by_speaker`, and never a name:
speakers are `A`, `B`, … in the order in which they are first heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from inferhub.backends.whisper.cluster import assign, cluster, smooth
from inferhub.backends.whisper.mel import FRAME_HOP, log_mel
from inferhub.backends.whisper.vad import STEP
from inferhub.core.errors import SetupError, UpstreamFailed
from inferhub.modalities.transcription import Segment
from inferhub.telemetry.resources import default_threads

_RATE_HZ = 16_000
_WINDOW = 80
"""Frames of 10 ms that the network looks at."""
_HOP = 40
_BATCH = 64
_SPEECH = 0.5
_PAUSE_STEPS = round(0.25 * _RATE_HZ / STEP)
"""A pause so long ends a stretch: two people seldom share one."""
_LEAST_STEPS = round(0.2 * _RATE_HZ / STEP)
THRESHOLD = 0.6
"""Of likeness. Synthetic voices would rather have 0.65, at which one real reader becomes three."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker, from second to second."""

    start_s: float
    end_s: float
    speaker: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Speech without a pause, from sample to sample."""

    start: int
    end: int


class Diarizer:
    """The loaded speaker embedder. One serves any number of threads."""

    def __init__(self, path: Path, threshold: float | None = None) -> None:
        """Blocks while it loads. Raises `SetupError`."""
        import onnxruntime

        self.threshold = THRESHOLD if threshold is None else threshold
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = default_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            shapes = [list(value.shape[1:]) for value in self._session.get_inputs()]
        except Exception as error:  # the engine's exceptions share no base class
            raise SetupError(
                f"onnxruntime cannot load the speaker embedder {path}. Weights that InferHub knows by name "
                "are mended by `inferhub models pull`.",
                param="options",
            ) from error
        if shapes != [[_WINDOW, 40]]:
            raise SetupError(
                f"{path} is no speaker embedder that takes {_WINDOW} frames of 40 bands.", param="options"
            )

    def turns(
        self,
        samples: NDArray[np.int16],
        heard: Sequence[float],
        speakers: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> list[Turn]:
        """Turns in order, none over another. `heard` is the probability of speech in each 32 ms; `check` is
        called now and then, and may raise."""
        pieces = [
            (stretch, self.vectors(samples, stretch, check)) for stretch in stretches(heard, len(samples))
        ]
        if not pieces:
            return []
        steady = [_steadied(vectors) for _, vectors in pieces]
        centres = cluster(np.concatenate(steady), self.threshold, speakers)
        turns: list[Turn] = []
        names: dict[int, int] = {}
        for (stretch, _), vectors in zip(pieces, steady, strict=True):
            labels = smooth(assign(vectors, centres))
            for turn in _turns(stretch, labels):
                speaker = names.setdefault(turn.speaker, len(names))
                turns.append(Turn(turn.start_s, turn.end_s, speaker))
        return turns

    def vectors(
        self, samples: NDArray[np.int16], stretch: Stretch, check: Callable[[], None] = lambda: None
    ) -> Vectors:
        """One vector of length 1 for each 0.4 s of a stretch, from the 0.8 s that begin there."""
        frames = log_mel(samples[stretch.start : stretch.end].astype(np.float32) / 32768.0)
        if len(frames) < _WINDOW:
            # Said once more, and again: silence would sound like somebody else.
            frames = np.resize(frames, (_WINDOW, frames.shape[1]))
        starts = range(0, len(frames) - _WINDOW + 1, _HOP)
        windows = np.stack([frames[at : at + _WINDOW] for at in starts])
        found: list[Vectors] = []
        for first in range(0, len(windows), _BATCH):
            check()
            try:
                found.append(self._session.run(None, {"mel_window": windows[first : first + _BATCH]})[0])
            except Exception as error:  # the engine's exceptions share no base class
                raise UpstreamFailed("The speaker embedder failed on this sound.") from error
        return _unit(np.concatenate(found))

    def voice(self, samples: NDArray[np.int16]) -> Vectors:
        """One vector of length 1 for all of a sound, which should be one speaker's."""
        mean = self.vectors(samples, Stretch(0, len(samples))).mean(axis=0, keepdims=True)
        return np.asarray(_unit(mean)[0], np.float32)


def stretches(heard: Sequence[float], samples: int) -> list[Stretch]:
    """Where somebody speaks without a pause."""
    found: list[Stretch] = []
    start: int | None = None
    last = 0
    for step, probability in enumerate([*heard, *[0.0] * (_PAUSE_STEPS + 1)]):
        if probability >= _SPEECH:
            start = step if start is None else start
            last = step
        elif start is not None and step - last > _PAUSE_STEPS:
            if last + 1 - start >= _LEAST_STEPS:
                found.append(Stretch(start * STEP, min((last + 1) * STEP, samples)))
            start = None
    return found


def by_speaker(segment: Segment, turns: Sequence[Turn]) -> Iterator[Segment]:
    """The segment as it is, with its speaker, or cut where another one takes over."""
    words = segment.words
    if not words:
        yield msgspec.structs.replace(segment, speaker=letter(_speaker(segment.start, segment.end, turns)))
        return
    whose = [_speaker(word.start, word.end, turns) for word in words]
    first = 0
    for at in range(1, len(words) + 1):
        if at < len(words) and whose[at] == whose[first]:
            continue
        said = words[first:at]
        yield msgspec.structs.replace(
            segment,
            start=said[0].start,
            end=said[-1].end,
            text="".join(word.word for word in said),
            speaker=letter(whose[first]),
            words=said,
            # Which of the tokens are whose is not known once a segment is cut.
            tokens=segment.tokens if len(said) == len(words) else [],
        )
        first = at


def letter(speaker: int) -> str:
    """`A` to `Z`, then `AA`."""
    high, low = divmod(speaker, 26)
    return (letter(high - 1) if high else "") + chr(ord("A") + low)


def _speaker(start_s: float, end_s: float, turns: Sequence[Turn]) -> int:
    """Who speaks longest between the two; else whose turn is nearest."""
    if not turns:
        return 0
    best = max(turns, key=lambda turn: (_overlap(start_s, end_s, turn), -_distance(start_s, end_s, turn)))
    return best.speaker


def _overlap(start_s: float, end_s: float, turn: Turn) -> float:
    return max(0.0, min(end_s, turn.end_s) - max(start_s, turn.start_s))


def _distance(start_s: float, end_s: float, turn: Turn) -> float:
    return max(0.0, turn.start_s - end_s, start_s - turn.end_s)


def _turns(stretch: Stretch, labels: Sequence[int]) -> Iterator[Turn]:
    """Runs of the same label. The window behind a label is centred half a hop after its beginning."""
    start_s, end_s = stretch.start / _RATE_HZ, stretch.end / _RATE_HZ
    hop_s = _HOP * FRAME_HOP / _RATE_HZ
    offset_s = (_WINDOW - _HOP) / 2 * FRAME_HOP / _RATE_HZ
    begin_s, first = start_s, 0
    for at in range(1, len(labels) + 1):
        if at < len(labels) and labels[at] == labels[first]:
            continue
        stop_s = end_s if at == len(labels) else min(end_s, start_s + offset_s + at * hop_s)
        yield Turn(begin_s, stop_s, labels[first])
        begin_s, first = stop_s, at


def _steadied(vectors: Vectors) -> Vectors:
    """Each with its neighbours: 0.8 s are little to know a voice by."""
    padded = np.concatenate([vectors[:1], vectors, vectors[-1:]])
    return _unit(padded[:-2] + padded[1:-1] + padded[2:])


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9), np.float32)
