"""Who speaks in a live session: each utterance is put to the voice that it is most like, or begins a new one.

`live` asks for a name when an utterance has ended. Unlike in a recording, a name that was given stands.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inferhub.backends.whisper.diarize import Diarizer, letter
from inferhub.backends.whisper.engine import RATE_HZ, Engine

_LEAST_S = 0.4
"""Less tells nobody's voice."""
_SURE_S = 1.2
"""Less is put to a voice that is known already, once there is one."""


class SessionVoices:
    """The voices of one session, and how long each was heard."""

    def __init__(self, engine: Engine, diarizer: Diarizer, most: int | None) -> None:
        """`most` is the number of speakers, where the client knows it."""
        self._engine = engine
        self._diarizer = diarizer
        self._most = most
        self._sums: list[NDArray[np.float32]] = []

    async def name(self, samples: NDArray[np.float32]) -> str | None:
        """`A`, `B`, … in order of appearance; None for too little speech."""
        if len(samples) < _LEAST_S * RATE_HZ:
            return None
        pcm = (samples * 32767.0).clip(-32768, 32767).astype(np.int16)
        return letter(self._place(await self._engine.work(self._diarizer.voice, pcm), len(pcm) / RATE_HZ))

    def _place(self, voice: NDArray[np.float32], length_s: float) -> int:
        alike = [float(voice @ known) / float(np.linalg.norm(known)) for known in self._sums]
        nearest = int(np.argmax(alike)) if alike else -1
        has_room = self._most is None or len(self._sums) < self._most
        is_new = not alike or (has_room and length_s >= _SURE_S and alike[nearest] < self._diarizer.threshold)
        if is_new:
            self._sums.append(voice * length_s)
            return len(self._sums) - 1
        self._sums[nearest] = self._sums[nearest] + voice * length_s
        return nearest
