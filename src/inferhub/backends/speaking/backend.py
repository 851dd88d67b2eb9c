"""One spoken call: its text in clauses, each made while the one before it is sent, encoded as it goes.

Base class of the engines that speak. They give phonemes and sound, in a thread; everything else is here.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from inferhub.backends.base import Backend
from inferhub.backends.speaking.clauses import FIRST_CHARS, clauses
from inferhub.backends.speaking.plan import Plan, make_plan
from inferhub.backends.speaking.voices import Choir
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import InferHubError, Invalid, Unsupported, UpstreamFailed
from inferhub.core.models import Capability
from inferhub.core.usage import Usage
from inferhub.media import MediaPool
from inferhub.modalities.speech import SpeechDelta, SpeechRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE_HZ = 24_000
"""Of what the engines make."""
_SAMPLE_BYTES = 2
_PIECE_BYTES = RATE_HZ * _SAMPLE_BYTES
"""A second: what is sent at once, so that a slow client holds back the engine and not our memory."""


class Switch:
    """Stops what a thread computes for a call that nobody waits for any more."""

    def __init__(self) -> None:
        import onnxruntime

        self.options: Any = onnxruntime.RunOptions()
        self.is_off = False

    def off(self) -> None:
        self.is_off = True
        self.options.terminate = True


class SpeakingBackend(Backend):
    """An engine with voices."""

    isolated = True
    default_load = "demand"
    default_slots = 2
    languages: frozenset[str] = frozenset()
    """ISO 639-1."""
    can_blend = False
    first_chars = FIRST_CHARS
    """Of the first clause; an engine that is quick may take a whole sentence."""

    capabilities: tuple[Capability, ...] = ()

    async def load(self) -> None:
        self._threads = ThreadPoolExecutor(self.spec.slots or self.default_slots, thread_name_prefix="speech")
        self._media = MediaPool()
        try:
            await self._work(self.open)
        except BaseException:
            self._threads.shutdown(wait=False)
            raise
        self.choir = Choir(self.voices())
        offered = type(self).offers(self.spec) or ()
        self.capabilities = tuple(_with_voices(c, self.choir) for c in offered)

    async def unload(self) -> None:
        await self._media.close()
        await asyncio.to_thread(self._threads.shutdown)
        self.close()

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request = call.request
        if not isinstance(request, SpeechRequest):
            raise Unsupported(f"A model that speaks cannot answer a call of modality {call.modality!r}.")
        plan = make_plan(request, self.choir, self.languages, can_blend=self.can_blend)
        switch = Switch()
        meter = _Meter(plan)
        try:
            texts = list(clauses(request.input, self.first_chars))
            async with aclosing(self._sound(texts, plan, switch, meter)) as sound:
                # What cannot be spoken is an error with a status, not a file that breaks off.
                first = await anext(sound)
                async with aclosing(self._file(meter.passing(first, sound), plan)) as pieces:
                    async for data in pieces:
                        yield Delta(SpeechDelta(data, meter.take_ms(), meter.take_characters()))
            yield Finished(Usage(characters=len(request.input), audio_ms=meter.total_ms))
        finally:
            switch.off()

    # --- what an engine gives; all but `voices` runs in a thread ---------------------------------

    @abstractmethod
    def open(self) -> None:
        """Make ready. Raises `SetupError`."""

    @abstractmethod
    def close(self) -> None:
        """Free the engine."""

    @abstractmethod
    def voices(self) -> Sequence[Any]:
        """Of the engine that was opened."""

    @abstractmethod
    def phrases(self, clause: str, plan: Plan) -> list[str]:
        """Phonemes, in strings that are short enough for the engine. Raises `Invalid` or `SetupError`."""

    @abstractmethod
    def speak(self, phrase: str, plan: Plan, switch: Switch) -> NDArray[np.float32]:
        """Sound at `RATE_HZ`."""

    # --- the call --------------------------------------------------------------------------------

    async def _sound(
        self, texts: Sequence[str], plan: Plan, switch: Switch, meter: _Meter
    ) -> AsyncGenerator[bytes, None]:
        """Mono s16le. A clause is in the making while the one before it is taken."""
        is_silent = True
        ahead = self._start(texts[0], plan, switch)
        try:
            for number in range(len(texts)):
                pcm = await _translated(ahead)
                if number + 1 < len(texts):
                    ahead = self._start(texts[number + 1], plan, switch)
                meter.characters += len(texts[number])
                for piece in _pieces(pcm):
                    is_silent = False
                    yield piece
        finally:
            switch.off()
            ahead.cancel()
        if is_silent:
            raise Invalid("'input' has nothing that can be spoken.", param="input", code="nothing_to_say")

    def _start(self, text: str, plan: Plan, switch: Switch) -> asyncio.Future[bytes]:
        return asyncio.get_running_loop().run_in_executor(self._threads, self._make, text, plan, switch)

    def _make(self, text: str, plan: Plan, switch: Switch) -> bytes:
        """In the thread."""
        made = bytearray()
        for phrase in self.phrases(text, plan):
            if switch.is_off:
                break
            made += _s16le(self.speak(phrase, plan, switch))
        return bytes(made)

    async def _file(self, pcm: AsyncIterator[bytes], plan: Plan) -> AsyncGenerator[bytes, None]:
        """The sound with its effects in the format that was asked for."""
        rate_hz = plan.sample_rate_hz or RATE_HZ
        if rate_hz == RATE_HZ:
            encoded = self._media.encode_audio(pcm, rate_hz=RATE_HZ, format=plan.format, effects=plan.effects)
            async with aclosing(encoded) as pieces:
                async for piece in pieces:
                    yield piece
            return
        changed = self._media.encode_audio(pcm, rate_hz=RATE_HZ, format="pcm", effects=plan.effects)
        resampled = self._media.decode_live(changed, format="pcm", input_rate_hz=RATE_HZ, rate_hz=rate_hz)
        whole = resampled
        if plan.format != "pcm":
            whole = self._media.encode_audio(resampled, rate_hz=rate_hz, format=plan.format)
        async with aclosing(changed), aclosing(resampled), aclosing(whole) as pieces:
            async for piece in pieces:
                yield piece

    async def _work(self, function: Any, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *given)


class _Meter:
    """How much was spoken, after what effects do to its length."""

    def __init__(self, plan: Plan) -> None:
        self._bytes_per_ms = RATE_HZ * _SAMPLE_BYTES / 1000 * plan.effects.speed
        self._bytes = 0
        self._told_ms = 0
        self.characters = 0
        """Of the clauses that were begun, since the last time."""

    @property
    def total_ms(self) -> int:
        return round(self._bytes / self._bytes_per_ms)

    def take_ms(self) -> int:
        """What came since the last time."""
        new_ms = self.total_ms - self._told_ms
        self._told_ms += new_ms
        return new_ms

    def take_characters(self) -> int:
        new, self.characters = self.characters, 0
        return new

    async def passing(self, first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self._bytes += len(first)
        yield first
        async for piece in rest:
            self._bytes += len(piece)
            yield piece


async def _translated(making: asyncio.Future[bytes]) -> bytes:
    try:
        return await making
    except InferHubError:
        raise
    except Exception as error:  # the engines' exceptions share no base class
        raise UpstreamFailed("The speech engine failed on this input.") from error


def _with_voices(capability: Capability, choir: Choir) -> Capability:
    from dataclasses import replace

    return replace(capability, voices=choir.voices)


def _s16le(samples: NDArray[np.float32]) -> bytes:
    import numpy as np

    clean = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    return (np.clip(clean, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def _pieces(pcm: bytes) -> Iterator[bytes]:
    for at in range(0, len(pcm), _PIECE_BYTES):
        yield pcm[at : at + _PIECE_BYTES]
