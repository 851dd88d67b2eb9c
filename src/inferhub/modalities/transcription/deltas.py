"""What comes back of a recording, piece by piece. Times are in seconds from its beginning."""

from __future__ import annotations

from typing import Literal

import msgspec


class Word(msgspec.Struct, omit_defaults=True):
    word: str
    start: float
    end: float
    probability: float | None = None


class Segment(msgspec.Struct, omit_defaults=True):
    """A stretch of speech, stable."""

    id: int
    start: float
    end: float
    text: str
    speaker: str | None = None
    """`A`, `B`, … in the order in which they are first heard."""
    words: list[Word] | None = None
    seek: int = 0
    """Where the window began in which it was recognised, in hundredths of a second."""
    tokens: list[int] = []
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0


Kind = Literal["about", "segment", "partial", "speech_started", "speech_stopped", "committed", "final"]


class TranscriptDelta(msgspec.Struct, omit_defaults=True):
    """One piece. A recording gives `about`, then `segment`s. Live sound gives, for each utterance,
    `speech_started`, `partial`s that replace each other, `speech_stopped` or `committed`, and a `final`."""

    kind: Kind
    segment: Segment | None = None
    """Of `segment` and `final`."""
    text: str = ""
    """Of `partial`, all of the utterance so far; it may change until `final`."""
    language: str = ""
    language_probability: float | None = None
    duration_s: float = 0.0
    """Of the sound taken in so far; the whole length in `about`."""
    utterance: int = 0
    """Live only: counts from 0."""
    at_s: float = 0.0
    """Live only: where in the sound this happened."""
