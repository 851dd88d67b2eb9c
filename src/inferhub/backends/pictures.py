"""What the engines that make pictures share: pictures as arrays, their sizes, a thread that can be stopped.

Used by `style_transfer`, `realesrgan` and `diffusers`. Bytes of clients are decoded by `MediaPool` alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferhub.core.call import Call, Delta, Finished, Media
from inferhub.core.errors import InferHubError, Invalid, Unsupported, UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.media import MediaPool, Picture
from inferhub.modalities.image import MAX_PICTURES, ImageDelta, ImageRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    """Height × width × 3, or × width alone for one channel."""

Say = Callable[[Any], None]
"""Called in the thread between two steps: hands something over, or raises `Stopped` where nobody listens."""


class Stopped(Exception):
    """Raised in an engine's thread whose caller is gone."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture as an engine sees it."""

    colours: Pixels
    alpha: Pixels | None = None

    @property
    def width(self) -> int:
        return int(self.colours.shape[1])

    @property
    def height(self) -> int:
        return int(self.colours.shape[0])


class Studio:
    """One thread for an engine that does one thing at a time, and the way of pictures to it and back."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._pool = MediaPool()

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        await self._pool.close()

    async def work(self, function: Callable[..., Any], *given: Any) -> Any:
        """`function` in the thread, to its end. For what is quick, or happens once."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *given)

    async def told(self, function: Callable[[Say], None], failed: str) -> AsyncGenerator[Any, None]:
        """What `function` says while it runs in the thread. Once nobody listens, its next `say` stops it.

        Foreign exceptions become `UpstreamFailed` with the message `failed`.
        """
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Any] = asyncio.Queue()
        is_over = threading.Event()
        end = object()

        def say(item: Any) -> None:
            if is_over.is_set():
                raise Stopped
            loop.call_soon_threadsafe(heard.put_nowait, item)

        running = self._thread.submit(function, say)
        running.add_done_callback(lambda _: _unless_closed(loop, heard, end))
        try:
            while (item := await heard.get()) is not end:
                yield item
            _raise_failure(running, failed)
        finally:
            is_over.set()
            running.cancel()

    # --- pictures ------------------------------------------------------------------------------

    async def opened(self, file: Media, *, max_side: int | None = None) -> Canvas:
        """Raises `Invalid` or `TooLarge` naming the form's field."""
        import numpy as np

        picture = await self._pool.decode_image(file.data, max_side=max_side, param=file.field)
        shape = (picture.height, picture.width)
        colours = np.frombuffer(picture.rgb, np.uint8).reshape(*shape, 3)
        alpha = None if picture.alpha is None else np.frombuffer(picture.alpha, np.uint8).reshape(shape)
        return Canvas(colours, alpha)

    async def image(self, canvas: Canvas, request: ImageRequest, index: int = 0) -> ImageDelta:
        """The finished file, in the format that was asked for."""
        alpha = canvas.alpha
        if request.output_format == "jpeg" or request.background == "opaque":
            canvas, alpha = flattened(canvas), None
        picture = Picture(
            canvas.width,
            canvas.height,
            canvas.colours.tobytes(),
            None if alpha is None else alpha.tobytes(),
        )
        quality = request.output_compression
        data = await self._pool.encode_image(
            picture, request.output_format, quality=None if quality is None else max(quality, 1)
        )
        return ImageDelta("image", index, data, canvas.width, canvas.height)


def _unless_closed(loop: asyncio.AbstractEventLoop, heard: asyncio.Queue[Any], end: object) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(heard.put_nowait, end)


def _raise_failure(running: Future[None], failed: str) -> None:
    try:
        running.result()
    except (InferHubError, Stopped):
        raise
    except Exception as error:  # engines' exceptions share no base class
        raise UpstreamFailed(failed) from error


# --- calls -------------------------------------------------------------------------------------


def asked_of(call: Call) -> ImageRequest:
    if not isinstance(call.request, ImageRequest):
        raise Unsupported(f"A model of pictures cannot answer a call of modality {call.modality!r}.")
    return call.request


def files_of(call: Call, *, least: int = 1, most: int = MAX_PICTURES) -> Sequence[Media]:
    """The pictures that came, in their order. Raises `Invalid` where there are too few or too many."""
    found = [file for file in call.media if file.field == "image"]
    if len(found) < least:
        raise Invalid(
            "'image' is required: send it as a file of a form.",
            param="image",
            code="missing_required_parameter",
        )
    if len(found) > most:
        raise Invalid(
            f"'image' is there {len(found)} times; model {call.model!r} takes {most} at most.", param="image"
        )
    return found


def refuse_mask(call: Call) -> None:
    if any(file.field == "mask" for file in call.media):
        raise Unsupported(f"Model {call.model!r} changes whole pictures; it takes no 'mask'.", param="mask")


def progress(step: int, steps: int) -> Delta:
    return Delta(ImageDelta("progress", step=step, steps=steps))


def finished(made: Sequence[ImageDelta]) -> Finished:
    return Finished(Usage(images=len(made), pixels=sum(image.width * image.height for image in made)))


# --- pixels ------------------------------------------------------------------------------------


def flattened(canvas: Canvas) -> Canvas:
    """The picture on white, where it was transparent."""
    import numpy as np

    if canvas.alpha is None:
        return canvas
    share = canvas.alpha[..., None].astype(np.float32) / 255
    return Canvas(as_pixels(canvas.colours * share + 255 * (1 - share)))


def as_pixels(values: Any) -> Pixels:
    """Rounds values of 0 to 255."""
    import numpy as np

    pixels: Pixels = (np.clip(values, 0, 255) + 0.5).astype(np.uint8)
    return pixels


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    import numpy as np
    from PIL import Image

    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def covering(canvas: Canvas, width: int, height: int) -> Canvas:
    """The middle of the picture, in exactly this size: cut to its shape, never stretched."""
    scale = max(width / canvas.width, height / canvas.height)
    wide, high = max(width, round(canvas.width * scale)), max(height, round(canvas.height * scale))
    left, top = (wide - width) // 2, (high - height) // 2

    def fit(pixels: Pixels) -> Pixels:
        return resized(pixels, wide, high)[top : top + height, left : left + width]

    return Canvas(fit(canvas.colours), None if canvas.alpha is None else fit(canvas.alpha))
