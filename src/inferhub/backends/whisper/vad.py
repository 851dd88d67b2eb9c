"""Where somebody speaks: Silero's voice detector, which says for each 32 ms how probable speech is.

`backend` asks it about a whole recording, `live` about sound as it comes. Blocks for some 0.1 ms a step, so
it belongs into a thread; it decides nothing, and keeps no sound but the few samples that the next step needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferhub.core.errors import SetupError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEP = 512
"""Samples that are judged at once: 32 ms at 16 kHz."""
STEP_S = STEP / 16_000

_CONTEXT = 64
"""Samples of the step before that the model wants to see again."""
_STATE = (1, 1, 128)
_MOST_STEPS = 1024
"""In one run, so that an hour of sound does not become one tensor."""


class VoiceDetector:
    """The loaded model. One serves any number of threads."""

    def __init__(self) -> None:
        """Blocks while it loads. Raises `SetupError`."""
        try:
            import onnxruntime
            from faster_whisper.utils import get_assets_path
        except ImportError as error:
            raise SetupError(
                "Backend 'whisper' needs the packages 'faster-whisper' and 'onnxruntime': install "
                "'inferhub[local]'."
            ) from error
        options = onnxruntime.SessionOptions()
        # It is small: a second thread, or one that spins while it waits, costs others more than it gains.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        path = Path(get_assets_path()) / "silero_vad_v6.onnx"
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the engine's exceptions share no base class
            raise SetupError(
                "The voice detector in the package 'faster-whisper' cannot be loaded."
            ) from error

    def stream(self) -> VoiceStream:
        """For sound that comes bit by bit; not for two threads at once."""
        return VoiceStream(self._session)

    def probabilities(self, samples: NDArray[np.int16]) -> list[float]:
        """Of a whole recording; a last step that is cut short is filled up with silence."""
        import numpy as np

        stream = self.stream()
        found = stream.hear(samples)
        rest = len(samples) % STEP
        if rest:
            found += stream.hear(np.zeros(STEP - rest, np.int16))
        return found


class VoiceStream:
    """What the detector remembers of one sound."""

    def __init__(self, session: Any) -> None:
        import numpy as np

        self._session = session
        self._rest = np.zeros(0, np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)
        self._h = np.zeros(_STATE, np.float32)
        self._c = np.zeros(_STATE, np.float32)

    def hear(self, samples: NDArray[np.int16]) -> list[float]:
        """The probabilities of the steps that are complete now."""
        import numpy as np

        sound = np.concatenate([self._rest, samples.astype(np.float32) / 32768.0])
        steps = len(sound) // STEP
        self._rest = sound[steps * STEP :]
        found: list[float] = []
        for first in range(0, steps, _MOST_STEPS):
            found += self._judge(sound[first * STEP : min(first + _MOST_STEPS, steps) * STEP])
        return found

    def _judge(self, sound: NDArray[np.float32]) -> list[float]:
        import numpy as np

        steps = sound.reshape(-1, STEP)
        contexts = np.concatenate([self._context[None], steps[:-1, -_CONTEXT:]])
        given = {"input": np.concatenate([contexts, steps], axis=1), "h": self._h, "c": self._c}
        output, self._h, self._c = self._session.run(None, given)
        self._context = steps[-1, -_CONTEXT:]
        return [float(value) for value in output.reshape(-1)]
