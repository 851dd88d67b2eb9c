"""Where in a recording somebody speaks, and which stretches of it the model gets at once. Pure functions.

`backend` calls them in an engine thread. Sound is cut in silence, and silence itself is left out: Whisper
invents words for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferhub.backends.whisper.vad import STEP, STEP_S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SPEECH = 0.5
_SILENCE = 0.35
"""Below it speech ends; between the two, it goes on if it has begun."""
_GAP_FRAMES = round(2.0 / STEP_S)
"""A longer silence is left out."""
_PAD_FRAMES = round(0.4 / STEP_S)
_LEAST_FRAMES = round(0.1 / STEP_S)
"""A click is no word."""
_MOST_FRAMES = int(29.0 / STEP_S)
"""Of one window; the model takes 30 s."""
_SEARCH_FRAMES = round(8.0 / STEP_S)
"""How far before its end a window that is too long is searched for a pause to cut it in."""
_PAUSE_FRAMES = 5


@dataclass(frozen=True, slots=True)
class Span:
    """From frame to frame of 32 ms, the last one excluded."""

    start: int
    end: int

    @property
    def frames(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Window:
    """Spans of a recording that are recognised together, one after the other without what lies between."""

    spans: tuple[Span, ...]

    def cut(self, samples: NDArray[np.int16]) -> NDArray[np.float32]:
        """The sound of the window, from that of the recording."""
        import numpy as np

        pieces = [samples[span.start * STEP : span.end * STEP] for span in self.spans]
        return np.concatenate(pieces).astype(np.float32) / 32768.0

    def time(self, within_s: float, *, is_end: bool = False) -> float:
        """A moment of the window as a moment of the recording. On a seam, the one that `is_end` asks for."""
        passed_s = 0.0
        for number, span in enumerate(self.spans):
            length_s = span.frames * STEP_S
            is_last = number == len(self.spans) - 1
            if is_last or within_s < passed_s + length_s or (is_end and within_s <= passed_s + length_s):
                return span.start * STEP_S + within_s - passed_s
            passed_s += length_s
        raise ValueError("a window has at least one span")


def windows(probabilities: Sequence[float], *, keep_silence: bool = False) -> Iterator[Window]:
    """Windows in which all speech lies, in order; with `keep_silence`, the whole recording does."""
    total = len(probabilities)
    found = [Span(0, total)] if keep_silence and total else speech(probabilities)
    gathered: list[Span] = []
    room = _MOST_FRAMES
    for span in found:
        for piece in _pieces(span, probabilities):
            if piece.frames > room and gathered:
                yield Window(tuple(gathered))
                gathered, room = [], _MOST_FRAMES
            gathered.append(piece)
            room -= piece.frames
    if gathered:
        yield Window(tuple(gathered))


def speech(probabilities: Sequence[float]) -> list[Span]:
    """Stretches with speech in them, with some silence around; none touches another."""
    total = len(probabilities)
    return [
        Span(max(0, span.start - _PAD_FRAMES), min(total, span.end + _PAD_FRAMES))
        for span in _runs(probabilities)
        if span.frames >= _LEAST_FRAMES
    ]


def _runs(probabilities: Sequence[float]) -> Iterator[Span]:
    start: int | None = None
    quiet = 0
    for frame, probability in enumerate(probabilities):
        if probability >= _SPEECH:
            start = frame if start is None else start
            quiet = 0
        elif start is not None:
            # Between the two limits speech goes on, unless it has ended before.
            quiet = quiet + 1 if probability < _SILENCE or quiet else 0
            if quiet > _GAP_FRAMES:
                yield Span(start, frame + 1 - quiet)
                start = None
    if start is not None:
        yield Span(start, len(probabilities) - quiet)


def _pieces(span: Span, probabilities: Sequence[float]) -> Iterator[Span]:
    """A span that is longer than a window, cut where it is quietest."""
    start = span.start
    while span.end - start > _MOST_FRAMES:
        latest = start + _MOST_FRAMES
        cut = _quietest(probabilities, latest - _SEARCH_FRAMES, latest)
        yield Span(start, cut)
        start = cut
    yield Span(start, span.end)


def _quietest(probabilities: Sequence[float], first: int, last: int) -> int:
    """The middle of the pause with the least speech; the latest, where there are several."""
    costs = [sum(probabilities[at : at + _PAUSE_FRAMES]) for at in range(first, last - _PAUSE_FRAMES)]
    least = min(costs) + 0.05
    best = max(at for at, cost in enumerate(costs) if cost <= least)
    return first + best + _PAUSE_FRAMES // 2
