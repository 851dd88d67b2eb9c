"""The backend itself: which style is meant, how large, how strong. Loaded by the worker's host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec
from msgspec import Meta

from inferhub.backends.base import Backend, check_options
from inferhub.backends.pictures import (
    Canvas,
    Say,
    Studio,
    as_pixels,
    asked_of,
    covering,
    files_of,
    finished,
    flattened,
    refuse_mask,
    resized,
)
from inferhub.backends.style_transfer.styles import chosen
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import Invalid
from inferhub.core.models import Capability, ModelSpec
from inferhub.modalities.image import ImageRequest, size_of
from inferhub.telemetry.resources import default_threads

if TYPE_CHECKING:
    from inferhub.backends.pictures import Pixels

_LEAST_SIDE = 32
_MAX_SIDE = 4096
"""Of a picture; a larger one is made smaller first."""
_FEATURES = frozenset({"stream", "edit", "seed", "strength", "preserve_color", "style", "transparent"})


class StyleTransferOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Defaults fit two cores."""

    max_side: Annotated[int, Meta(ge=64, le=2048)] = 1024
    """Pixels at the longer side that are painted; the result is then brought to the picture's own size.
    Memory grows with its square."""
    threads: Annotated[int, Meta(ge=1)] | None = None
    """Half the cores, because the other half serves the requests."""


class StyleTransfer(Backend):
    """`POST /v1/images/edits` with a style."""

    Options = StyleTransferOptions
    isolated = True
    default_load = "demand"
    default_slots = 1

    @classmethod
    def offers(cls, spec: ModelSpec) -> tuple[Capability, ...]:
        return (Capability("image", _FEATURES),)

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        return self.offers(self.spec)

    async def load(self) -> None:
        from inferhub.backends.style_transfer.networks import Networks

        options = cast("StyleTransferOptions", check_options(type(self), self.spec))
        self._max_side = options.max_side
        self._studio = Studio("style-transfer")
        try:
            self._networks = await self._studio.work(Networks, options.threads or default_threads())
        except BaseException:
            await self._studio.close()
            raise

    async def unload(self) -> None:
        await self._studio.close()
        del self._networks

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        import onnxruntime

        request = asked_of(call)
        refuse_mask(call)
        files = files_of(call, most=2)
        style = chosen(request.style, request.prompt) if len(files) == 1 else None
        canvas = await self._studio.opened(files[0], max_side=_MAX_SIDE)
        if min(canvas.width, canvas.height) < _LEAST_SIDE:
            raise Invalid(
                f"'image' is {canvas.width}x{canvas.height}; a style needs {_LEAST_SIDE} pixels a side.",
                param="image",
            )
        size = size_of(request)
        if size is not None:
            canvas = covering(canvas, *size)
        other = await self._studio.opened(files[1], max_side=_MAX_SIDE) if style is None else None
        switch = onnxruntime.RunOptions()

        def paint(say: Say) -> None:
            say(self._painted(canvas, style, other, request, switch))

        try:
            async with aclosing(self._studio.told(paint, "The style could not be painted.")) as told:
                async for painted in told:
                    image = await self._studio.image(painted, request)
                    yield Delta(image)
                    yield finished([image])
        finally:
            # Stops what is still being painted; without effect after the end.
            switch.terminate = True

    # --- in the thread -------------------------------------------------------------------------

    def _painted(
        self, canvas: Canvas, style: int | None, other: Canvas | None, request: ImageRequest, switch: Any
    ) -> Canvas:
        strength = 1.0 if request.strength is None else request.strength
        original = flattened(canvas).colours
        small = self._small(original)
        if style is not None:
            painted = self._networks.in_style(small, style, switch)
        else:
            assert other is not None  # noqa: S101 - `run` opened it where there is no style
            painted = self._networks.in_style_of(small, flattened(other).colours, strength, switch)
        painted = resized(painted, canvas.width, canvas.height)
        if request.preserve_color:
            painted = _with_colours_of(original, painted)
        return Canvas(_mixed(original, painted, strength), canvas.alpha)

    def _small(self, pixels: Pixels) -> Pixels:
        high, wide = pixels.shape[:2]
        scale = min(1.0, self._max_side / max(high, wide))
        return resized(pixels, max(1, round(wide * scale)), max(1, round(high * scale)))


def _with_colours_of(original: Pixels, painted: Pixels) -> Pixels:
    """Brightness of the painting, colours of the original."""
    import numpy as np
    from PIL import Image

    light = Image.fromarray(painted).convert("YCbCr").getchannel("Y")
    _, blue, red = Image.fromarray(original).convert("YCbCr").split()
    return np.asarray(Image.merge("YCbCr", (light, blue, red)).convert("RGB"))


def _mixed(original: Pixels, painted: Pixels, strength: float) -> Pixels:
    import numpy as np

    if strength >= 1:
        return painted
    return as_pixels(original * np.float32(1 - strength) + painted * np.float32(strength))
