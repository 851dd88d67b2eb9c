"""Live recognition: sound comes in bit by bit, partial and final transcripts come out of one session.

`backend` calls `listen` for a call with `incoming`. Goes on listening while the engine works: a partial that
would come too late is left out, finals never are, and sound is taken in only as long as there is room.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inferhub.backends.whisper.engine import RATE_HZ, Engine, Hints, Recognition
from inferhub.backends.whisper.intake import hear, until_done
from inferhub.backends.whisper.utterances import Began, Due, Ended, Event, Piece, Utterances
from inferhub.backends.whisper.vad import VoiceDetector
from inferhub.core.call import Call, Delta, Finished, Frame
from inferhub.core.errors import Invalid
from inferhub.core.usage import Usage
from inferhub.media import MediaPool
from inferhub.modalities.transcription import Live, Segment, TranscriptDelta, Word

_BEHIND_S = 60.0
"""Sound that may wait for the engine. Then its client waits."""
_LULL_S = 0.3
"""After so long without any sound, a partial tells of all that there is."""
_BATCH = RATE_HZ
"""Samples that are judged in one go, so that a large frame does not hold the loop for long."""
_OUT = 64
_PROMPT_CHARS = 200
_PROMPTED_S = 2.0
"""Where less is said, the model is tempted to say what was said before once more."""
_SURE = 0.8
"""Probability of a language from which on it is taken for the rest of the utterance."""
_BEAM = 5

Samples = NDArray[np.int16]


class Voices(Protocol):
    """Who speaks, over one session."""

    async def name(self, samples: NDArray[np.float32]) -> str | None:
        """The speaker of an utterance: `A`, `B`, … in order of appearance; None for too little speech."""


@dataclass(frozen=True, slots=True)
class Equipment:
    """What the backend lends to each session."""

    engine: Engine
    detector: VoiceDetector
    media: MediaPool


async def listen(
    call: Call, equipment: Equipment, hints: Hints, voices: Voices | None = None
) -> AsyncGenerator[Delta | Finished, None]:
    """Everything that the session says, until its client stops talking. `hints` are those of its request."""
    live = call.request.live or Live()
    assert call.incoming is not None  # noqa: S101 - the backend looked
    out: asyncio.Queue[TranscriptDelta] = asyncio.Queue(_OUT)
    wants_words = "word" in (call.request.timestamp_granularities or ())
    session = _Session(live, equipment, replace(hints, words=wants_words), voices, out.put)
    yield Delta(TranscriptDelta("about", language=hints.language or ""))
    async with aclosing(until_done(session.run(call.incoming), out)) as deltas:
        async for delta in deltas:
            yield Delta(delta)
    yield Finished(Usage(audio_ms=round(session.heard_s * 1000)))


class _Sound:
    """The samples that somebody may still ask for, by their place in the session."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._begin = 0
        self.end = 0

    def add(self, samples: Samples) -> None:
        self._data += samples.tobytes()
        self.end += len(samples)

    def cut(self, start: int, end: int) -> NDArray[np.float32]:
        part = self._data[(start - self._begin) * 2 : (end - self._begin) * 2]
        return np.frombuffer(part, np.int16).astype(np.float32) / 32768.0

    def forget_before(self, sample: int) -> None:
        # Now and then, because it moves everything that stays.
        if sample - self._begin > 5 * RATE_HZ:
            del self._data[: (sample - self._begin) * 2]
            self._begin = sample


class _Session:
    """Three tasks that share the sound: one hears and decides, one makes finals, one partials."""

    def __init__(
        self,
        live: Live,
        equipment: Equipment,
        hints: Hints,
        voices: Voices | None,
        say: Callable[[TranscriptDelta], Awaitable[None]],
    ) -> None:
        self._live = live
        self._equipment = equipment
        self._hints = hints
        self._voices = voices
        self._say = say
        self._sound = _Sound()
        self._voice = equipment.detector.stream()
        self._utterances = Utterances(live.endpointing)
        self._pieces: deque[Piece] = deque()
        self._due: Due | None = None
        self._glancing: asyncio.Future[Recognition] | None = None
        """The partial that is being made."""
        self._has_ended = False
        self._is_due = asyncio.Event()
        self._has_piece = asyncio.Event()
        self._room = asyncio.Event()
        """Some of it is done."""
        self._said: defaultdict[int, list[Recognition]] = defaultdict(list)
        """The pieces of utterances that are not complete, with times of the session."""
        self._cleared = -1
        """The last utterance that the client took back."""
        self._before = ""
        """The text of the utterance before."""
        self._language: tuple[int, str] | None = None
        """Of which utterance, and which one."""

    @property
    def heard_s(self) -> float:
        return self._sound.end / RATE_HZ

    async def run(self, incoming: AsyncIterator[Frame]) -> None:
        """Returns when everything that was said is recognised."""
        hearing = asyncio.ensure_future(self._hear(incoming))
        finishing = asyncio.ensure_future(self._finish_all())
        glancing = asyncio.ensure_future(self._glance_all())
        tasks = (hearing, finishing, glancing)
        try:
            while not finishing.done():
                done, _ = await asyncio.wait(
                    [task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    # --- hearing -------------------------------------------------------------------------------

    async def _hear(self, incoming: AsyncIterator[Frame]) -> None:
        loop = asyncio.get_running_loop()
        lull: asyncio.TimerHandle | None = None
        try:
            async with aclosing(hear(incoming, self._live, self._equipment.media)) as heard:
                async for item in heard:
                    if lull is not None:
                        lull.cancel()
                    if isinstance(item, str):
                        await self._obey(item)
                    else:
                        await self._take(item)
                    lull = loop.call_later(_LULL_S, self._look_again)
        finally:
            if lull is not None:
                lull.cancel()
        await self._handle(self._utterances.end())
        self._has_ended = True
        self._has_piece.set()

    async def _take(self, samples: Samples) -> None:
        for first in range(0, len(samples), _BATCH):
            part = samples[first : first + _BATCH]
            self._sound.add(part)
            for probability in await asyncio.to_thread(self._voice.hear, part):
                await self._handle(self._utterances.step(probability))
            self._sound.forget_before(self._oldest())
            while self._sound.end - self._oldest() > _BEHIND_S * RATE_HZ and self._pieces:
                self._room.clear()
                await self._room.wait()

    def _oldest(self) -> int:
        """The first sample that is still needed."""
        needed = self._utterances.needed_from
        return min(needed, self._pieces[0].start) if self._pieces else needed

    async def _obey(self, event: str) -> None:
        if event == "commit":
            await self._handle(self._utterances.commit())
        elif event == "clear":
            self._due = None
            self._cleared = self._utterances.utterance
            await self._handle(self._utterances.clear())
        else:
            raise Invalid(f"{event[:40]!r} is nothing that a live recognition can be told.")

    def _look_again(self) -> None:
        for event in self._utterances.lull():
            if isinstance(event, Due):
                self._plan(event)

    async def _handle(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Began(utterance, at):
                    await self._tell("speech_started", utterance, at)
                case Ended(utterance, at, is_committed):
                    self._due = None
                    await self._tell("committed" if is_committed else "speech_stopped", utterance, at)
                case Piece():
                    self._due = None
                    self._pieces.append(event)
                    if self._glancing is not None:
                        self._glancing.cancel()
                    self._has_piece.set()
                case Due():
                    self._plan(event)

    def _plan(self, due: Due) -> None:
        """Replaces what was planned: of two looks at the same utterance only the later one is worth it."""
        if self._live.partials:
            self._due = due
            self._is_due.set()

    async def _tell(self, kind: str, utterance: int, at: int) -> None:
        await self._say(
            TranscriptDelta(kind, utterance=utterance, at_s=at / RATE_HZ, duration_s=self.heard_s)  # type: ignore[arg-type]
        )

    # --- recognising ---------------------------------------------------------------------------

    async def _finish_all(self) -> None:
        while self._pieces or not self._has_ended:
            if not self._pieces:
                self._has_piece.clear()
                await self._has_piece.wait()
                continue
            await self._finish(self._pieces[0])
            self._pieces.popleft()
            self._room.set()

    async def _glance_all(self) -> None:
        """Beside the finals: whoever speaks again must not wait for what they said before."""
        while True:
            due, self._due = self._due, None
            if due is None:
                self._is_due.clear()
                await self._is_due.wait()
            elif not any(piece.utterance == due.utterance for piece in self._pieces):
                await self._glance(due)

    async def _glance(self, due: Due) -> None:
        """A partial: real recognition of all the sound of the utterance so far."""
        end = self._sound.end
        self._glancing = asyncio.ensure_future(
            self._ask(due.utterance, due.start, end, is_draft=not due.is_lull)
        )
        try:
            await asyncio.wait([self._glancing])
        finally:
            self._glancing.cancel()
        if self._glancing.cancelled() or due.utterance != self._utterances.utterance:
            return None  # It is over, and its final comes next.
        found = self._glancing.result()
        if not found.text:
            return self._utterances.heard_nothing(due.utterance)
        text = " ".join(text for text in (*self._texts(due.utterance), found.text) if text)
        await self._say(
            TranscriptDelta(
                "partial",
                text=text,
                language=found.language,
                language_probability=found.language_probability,
                duration_s=self.heard_s,
                utterance=due.utterance,
                at_s=end / RATE_HZ,
            )
        )
        return None

    async def _finish(self, piece: Piece) -> None:
        if piece.has_speech and piece.utterance != self._cleared:
            found = await self._ask(piece.utterance, piece.start, piece.end, is_final=True)
            self._said[piece.utterance].append(_moved(found, piece.start / RATE_HZ))
        if piece.utterance == self._cleared:
            self._said.pop(piece.utterance, None)
            return
        if not piece.is_last:
            return
        said = self._said.pop(piece.utterance, [])
        segment = _whole(said, piece)
        if self._voices is not None and piece.has_speech:
            segment.speaker = await self._voices.name(self._sound.cut(piece.start, piece.end))
        last = said[-1] if said else None
        self._before = segment.text or self._before
        await self._say(
            TranscriptDelta(
                "final",
                segment=segment,
                text=segment.text,
                language=last.language if last else "",
                language_probability=last.language_probability if last else None,
                duration_s=self.heard_s,
                utterance=piece.utterance,
                at_s=piece.end / RATE_HZ,
            )
        )

    async def _ask(
        self, utterance: int, start: int, end: int, *, is_final: bool = False, is_draft: bool = False
    ) -> Recognition:
        hints = replace(
            self._hints, beam=_BEAM, words=self._hints.words and is_final, is_draft=is_draft,
            language=self._hints.language or self._language_of(utterance, is_final=is_final),
        )  # fmt: skip
        if is_final and end - start >= _PROMPTED_S * RATE_HZ:
            before = " ".join((self._before, *self._texts(utterance)))
            hints = replace(hints, prompt=f"{hints.prompt} {before[-_PROMPT_CHARS:]}".strip())
        found = await self._equipment.engine.recognise(self._sound.cut(start, end), hints)
        if found.language_probability >= _SURE and end - start >= 2 * RATE_HZ:
            self._language = (utterance, found.language)
        return found

    def _language_of(self, utterance: int, *, is_final: bool) -> str | None:
        """What is known without listening. Finding out costs half of a recognition."""
        if self._language is None or (is_final and self._language[0] != utterance):
            # Somebody else may speak now: what is said for good is not said in a guessed language.
            return None
        return self._language[1]

    def _texts(self, utterance: int) -> list[str]:
        """Of the pieces that are recognised already."""
        return [said.text for said in self._said.get(utterance, ())]


def _moved(found: Recognition, by_s: float) -> Recognition:
    """With times of the session."""
    for segment in found.segments:
        segment.start, segment.end = segment.start + by_s, segment.end + by_s
        for word in segment.words or ():
            word.start, word.end = word.start + by_s, word.end + by_s
    return found


def _whole(said: list[Recognition], piece: Piece) -> Segment:
    """An utterance as one segment."""
    segments = [segment for found in said for segment in found.segments]
    text = " ".join(found.text for found in said if found.text)
    if not segments:
        return Segment(piece.utterance, piece.start / RATE_HZ, piece.end / RATE_HZ, text)
    words: list[Word] = [word for segment in segments for word in segment.words or ()]
    return Segment(
        id=piece.utterance,
        start=segments[0].start,
        end=segments[-1].end,
        text=text,
        words=words or None,
        tokens=[token for segment in segments for token in segment.tokens],
        temperature=max(segment.temperature for segment in segments),
        avg_logprob=sum(segment.avg_logprob for segment in segments) / len(segments),
        compression_ratio=max(segment.compression_ratio for segment in segments),
        no_speech_prob=max(segment.no_speech_prob for segment in segments),
    )
