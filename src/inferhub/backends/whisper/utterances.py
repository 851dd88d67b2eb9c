"""When somebody begins to speak and when they have ended: probabilities of speech in, events out.

A state machine without a clock, threads or sound; `live` drives it with what the voice detector says. All
times are samples at 16 kHz since the beginning of the session.
"""

from __future__ import annotations

from dataclasses import dataclass

from inferhub.backends.whisper.engine import RATE_HZ
from inferhub.backends.whisper.vad import STEP
from inferhub.modalities.transcription import Endpointing


@dataclass(frozen=True, slots=True)
class Began:
    utterance: int
    at: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing is added to the utterance any more; its last `Piece` follows."""

    utterance: int
    at: int
    is_committed: bool = False
    """By the client, and not by silence."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Sound to be recognised for good. Most utterances are one piece."""

    utterance: int
    start: int
    end: int
    is_last: bool = True
    has_speech: bool = True


@dataclass(frozen=True, slots=True)
class Due:
    """The sound from `start` on is long enough to be recognised for the time being."""

    utterance: int
    start: int
    is_lull: bool = False
    """Nothing more comes at present: there is time to listen well."""


Event = Began | Ended | Piece | Due


def steps(seconds: float) -> int:
    return round(seconds * RATE_HZ / STEP)


_LEAST = 3
"""Steps of speech that begin an utterance: a click is none."""
_HYSTERESIS = 0.15
"""Speech that is weaker by so much than what begins an utterance still goes on with it."""
_TAIL = steps(0.3)
"""Of the silence behind an utterance, for the last sound to fade in."""
_FIRST_PARTIAL = steps(0.7)
_NEXT_PARTIAL = steps(0.8)
_SOON = steps(0.4)
_LONG = steps(20.0)
"""From then on the next pause ends a piece."""
_LONGEST = steps(27.0)
"""The model hears 30 s at once. Here the quietest moment has to do."""
_PAUSE = 6
_SEARCH = steps(8.0)


class Utterances:
    """Made for one session."""

    def __init__(self, endpointing: Endpointing | None) -> None:
        """Without endpointing an utterance lasts until `commit`, and begins with the first sound after it."""
        rules = endpointing or Endpointing()
        self._is_manual = endpointing is None
        self._threshold = rules.threshold
        self._weakest = max(rules.threshold - _HYSTERESIS, 0.01)
        self._padding = steps(rules.prefix_padding_ms / 1000)
        self._silence = max(1, steps(rules.silence_duration_ms / 1000))
        self._now = 0
        """Steps judged so far."""
        self._utterance = 0
        self._floor = 0
        """Where the last utterance ended: no sound belongs to two."""
        self._is_open = self._is_manual
        self._run = 0
        """Steps of speech without a break."""
        self._quiet = 0
        """Steps of silence after it."""
        self._has_speech = False
        self._start = 0
        self._looked_at = 0
        self._next_partial = _FIRST_PARTIAL
        self._probabilities: list[float] = []

    @property
    def utterance(self) -> int:
        """The one that is spoken, or comes next."""
        return self._utterance

    @property
    def needed_from(self) -> int:
        """Sound before this sample will not be asked for, but by pieces that are out already."""
        if self._is_open:
            return self._start * STEP
        return max(self._floor, self._now - self._padding - _LEAST) * STEP

    def step(self, probability: float) -> list[Event]:
        """The next 32 ms."""
        self._now += 1
        self._count(probability)
        if not self._is_open:
            return self._begin() if self._run >= _LEAST else []
        self._probabilities.append(probability)
        if not self._is_manual and self._quiet >= self._silence:
            return self._close(self._now - self._quiet, is_committed=False)
        found = self._cut_long()
        if self._has_speech and self._now >= self._next_partial:
            found.append(self._due())
        return found

    def lull(self) -> list[Event]:
        """No sound comes at present: what there is of the utterance is worth a look."""
        if self._is_open and self._has_speech and self._now > self._looked_at:
            return [self._due(is_lull=True)]
        return []

    def heard_nothing(self, utterance: int) -> None:
        """The sound so far was too short for words: the next look comes sooner."""
        if utterance == self._utterance:
            self._next_partial = min(self._next_partial, self._looked_at + _SOON)

    def commit(self) -> list[Event]:
        """The client says that the utterance has ended."""
        if not self._is_open or (self._is_manual and self._now == self._start):
            return []
        return self._close(self._now, is_committed=True)

    def clear(self) -> list[Event]:
        """The client takes back what it said since the last utterance."""
        self._utterance += self._is_open
        self._is_open = self._is_manual
        self._floor = self._now
        self._reset(self._now)
        return []

    def end(self) -> list[Event]:
        """No more sound will come."""
        return self.commit()

    def _count(self, probability: float) -> None:
        if probability >= self._threshold:
            self._run += 1
            self._quiet = 0
            self._has_speech = self._has_speech or self._run >= _LEAST
            return
        self._run = 0
        # Between the two limits silence goes on where it has begun.
        if probability < self._weakest or self._quiet:
            self._quiet += 1

    def _begin(self) -> list[Event]:
        start = max(self._floor, self._now - self._run - self._padding, 0)
        self._is_open = True
        self._open_at(start, self._now + _FIRST_PARTIAL)
        return [Began(self._utterance, start * STEP)]

    def _close(self, spoken_until: int, *, is_committed: bool) -> list[Event]:
        end = self._now if is_committed else min(self._now, spoken_until + _TAIL)
        found: list[Event] = [
            Ended(self._utterance, end * STEP, is_committed),
            Piece(self._utterance, self._start * STEP, end * STEP, has_speech=self._has_speech),
        ]
        self._utterance += 1
        self._is_open = self._is_manual
        self._floor = end
        self._reset(end)
        return found

    def _cut_long(self) -> list[Event]:
        """An utterance that gets too long for the model goes on as the next one, or as the next piece."""
        length = self._now - self._start
        if length < _LONG or (self._quiet < _PAUSE and length < _LONGEST):
            return []
        cut = self._now - self._quiet // 2 if self._quiet >= _PAUSE else self._quietest()
        piece = Piece(
            self._utterance, self._start * STEP, cut * STEP, is_last=not self._is_manual,
            has_speech=self._has_speech,
        )  # fmt: skip
        found: list[Event] = [piece]
        if not self._is_manual:
            found.insert(0, Ended(self._utterance, cut * STEP))
            self._utterance += 1
            found.append(Began(self._utterance, cut * STEP))
        kept = self._probabilities[cut - self._start :]
        self._open_at(cut, self._now + _NEXT_PARTIAL)
        self._probabilities = kept
        self._has_speech = any(probability >= self._threshold for probability in kept)
        return found

    def _quietest(self) -> int:
        """The middle of the least speech in the last seconds."""
        known = self._probabilities
        first = max(0, len(known) - _SEARCH)
        costs = {at: sum(known[at : at + _PAUSE]) for at in range(first, len(known) - _PAUSE)}
        best = min(costs, key=lambda at: (round(costs[at], 1), -at))
        return self._start + best + _PAUSE // 2

    def _due(self, *, is_lull: bool = False) -> Due:
        self._looked_at = self._now
        self._next_partial = self._now + _NEXT_PARTIAL
        return Due(self._utterance, self._start * STEP, is_lull)

    def _open_at(self, start: int, next_partial: int) -> None:
        self._start = start
        self._looked_at = start
        self._next_partial = next_partial
        self._probabilities = []

    def _reset(self, start: int) -> None:
        self._run = 0
        self._quiet = 0
        self._has_speech = False
        self._open_at(start, start + _FIRST_PARTIAL)
