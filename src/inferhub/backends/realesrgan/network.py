"""One Real-ESRGAN network in ncnn. Called by `backend` in its one thread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inferhub.backends.pictures import as_pixels
from inferhub.core.errors import SetupError, UpstreamFailed

if TYPE_CHECKING:
    from inferhub.backends.pictures import Pixels


class Network:
    """Read on construction, which blocks. Raises `SetupError`."""

    def __init__(self, folder: Path, name: str, threads: int) -> None:
        try:
            import ncnn
        except ImportError as error:
            raise SetupError(
                "Backend 'realesrgan' needs the package 'ncnn': install 'inferhub[local]'."
            ) from error
        self._mat = ncnn.Mat
        self._net = ncnn.Net()
        self._net.opt.use_vulkan_compute = False
        self._net.opt.num_threads = threads
        files = (folder / f"{name}.param", folder / f"{name}.bin")
        # ncnn crashes on a file that is not there after it has said so.
        missing = next((file.name for file in files if not file.is_file()), None)
        if missing is not None:
            raise SetupError(f"{folder} has no file {missing!r}.", param="weights")
        if self._net.load_param(str(files[0])) or self._net.load_model(str(files[1])):
            raise SetupError(
                f"ncnn cannot read {name!r} in {folder}; `inferhub models pull realesrgan` replaces what is "
                "broken.",
                param="weights",
            )
        self._input, self._output = self._net.input_names()[0], self._net.output_names()[0]

    def enlarged(self, pixels: Pixels) -> Pixels:
        import numpy as np

        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 255
        extractor = self._net.create_extractor()
        # Without a copy, ncnn reads memory that belongs to the array.
        extractor.input(self._input, self._mat(planes).clone())
        status, made = extractor.extract(self._output)
        if status:
            raise UpstreamFailed("The upscaling engine failed on this picture.")
        return as_pixels(np.array(made).transpose(1, 2, 0) * 255)
