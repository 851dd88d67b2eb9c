"""English speech at a hundred times the pace of speaking: hibari, a small model with one voice.

Its weights travel in its package (Apache-2.0), and so does what turns English into phonemes. The package
would fetch further voices by itself; it is never asked to.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inferhub.backends.speaking.backend import SpeakingBackend, Switch
from inferhub.backends.speaking.phonemes import MAX_TOKENS, English, fitting
from inferhub.backends.speaking.plan import Plan
from inferhub.backends.speaking.voices import OPENAI_VOICES
from inferhub.core.errors import SetupError
from inferhub.core.models import Capability, ModelSpec, Voice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_VOICES = (Voice("heart", "en-US", "female", ("af_heart", *sorted(OPENAI_VOICES))),)
_FEATURES = frozenset({"stream", "emotion", "pitch", "gain", "sample_rate"})


class Hibari(SpeakingBackend):
    """hibari's one voice."""

    languages = frozenset({"en"})
    first_chars = 120

    @classmethod
    def offers(cls, spec: ModelSpec) -> tuple[Capability, ...]:
        return (Capability("speech", _FEATURES, voices=_VOICES),)

    def open(self) -> None:
        try:
            import hibari
        except ImportError as error:
            raise SetupError(
                f"Model {self.spec.name!r} needs the package 'hibari-tts': install 'inferhub[local]'.",
                param="backend",
            ) from error
        self._english = English()
        self._engine: Any = hibari.Hibari(threads=1, g2p=self._english.reader("en-US"))
        self._lock = threading.Lock()
        # The first sentence would pay for tables that are read late.
        self._engine("Ready.")

    def close(self) -> None:
        del self._engine, self._english

    def voices(self) -> Sequence[Voice]:
        return _VOICES

    def phrases(self, clause: str, plan: Plan) -> list[str]:
        return fitting(self._english.phonemes(clause, "en-US"), self._engine.vocab, MAX_TOKENS)

    def speak(self, phrase: str, plan: Plan, switch: Switch) -> NDArray[np.float32]:
        sound: NDArray[np.float32] = self._engine.from_phonemes(phrase, seed=0)
        return sound


BACKEND = Hibari
