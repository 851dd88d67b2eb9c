"""The backend itself: which network, how many times larger, tile by tile. Loaded by the worker's host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import msgspec
from msgspec import Meta

from inferhub.backends.base import Backend, check_options
from inferhub.backends.pictures import (
    Canvas,
    Say,
    Studio,
    asked_of,
    files_of,
    finished,
    flattened,
    progress,
    refuse_mask,
    resized,
)
from inferhub.backends.realesrgan.tiles import Tiling, tiles
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import Invalid, SetupError, Unsupported
from inferhub.core.models import Capability, ModelSpec
from inferhub.modalities.image import MAX_PIXELS, ImageRequest
from inferhub.telemetry.resources import default_threads

if TYPE_CHECKING:
    from inferhub.backends.realesrgan.network import Network

Kind = Literal["drawing", "photo"]

_PHOTO = "x4plus"
_PHOTO_SCALE = 4
_DEFAULT_SCALE = 4
_TILINGS: dict[Kind, Tiling] = {
    # Deeper than its 18 layers reach, so that tiles equal the whole.
    "drawing": Tiling(side=128, overlap=20),
    # About a second of one core each; more would keep a cancelled call's core longer.
    "photo": Tiling(side=56, overlap=8, blend=6),
}
_FEATURES = frozenset({"stream", "edit", "variation", "seed", "scale", "style", "transparent"})


class RealEsrganOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Defaults fit two cores."""

    kind: Kind = "drawing"
    """Which network where a request names none in `style`: `drawing` takes 10 µs for each pixel that comes
    in, and is good for photographs too; `photo` is better for them, takes 700 µs, and makes them only 4 times
    wider."""
    threads: Annotated[int, Meta(ge=1)] | None = None
    """Half the cores, because the other half serves the requests."""


class RealEsrgan(Backend):
    """`POST /v1/images/edits` and `/v1/images/variations` that make a picture larger."""

    Options = RealEsrganOptions
    isolated = True
    needs_weights = True
    default_load = "demand"
    default_slots = 1

    @classmethod
    def offers(cls, spec: ModelSpec) -> tuple[Capability, ...]:
        return (Capability("image", _FEATURES),)

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        return self.offers(self.spec)

    async def load(self) -> None:
        self._options = cast("RealEsrganOptions", check_options(type(self), self.spec))
        if self.weights is None or not self.weights.is_dir():
            raise SetupError(
                f"Model {self.spec.name!r} needs a folder with networks of ncnn in `weights`.",
                param="weights",
            )
        self._networks: dict[str, Network] = {}
        self._studio = Studio("realesrgan")
        try:
            # What cannot be read is found out now, not by the first call.
            await self._studio.work(self._network, _name(self._options.kind, _DEFAULT_SCALE))
        except BaseException:
            await self._studio.close()
            raise

    async def unload(self) -> None:
        await self._studio.close()
        self._networks.clear()

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request = asked_of(call)
        refuse_mask(call)
        _refuse_size(request, call)
        files = files_of(call, most=1)
        kind = self._kind(request)
        scale = request.scale or _DEFAULT_SCALE
        if kind == "photo" and scale != _PHOTO_SCALE:
            raise Unsupported(
                f"'scale' is {scale}; photographs are made {_PHOTO_SCALE} times wider only. With 'style': "
                "'drawing' it may be 2 or 3 too.",
                param="scale",
            )
        canvas = await self._studio.opened(files[0])
        pixels = canvas.width * canvas.height * scale**2
        if pixels > MAX_PIXELS:
            raise Invalid(
                f"'image' is {canvas.width}x{canvas.height}; {scale} times as wide it has {pixels} pixels, "
                f"and at most {MAX_PIXELS} are made.",
                param="image",
            )

        def enlarge(say: Say) -> None:
            say(self._enlarged(canvas, kind, scale, say))

        failed = "The picture could not be enlarged."
        async with aclosing(self._studio.told(enlarge, failed)) as told:
            async for item in told:
                if isinstance(item, Canvas):
                    image = await self._studio.image(item, request)
                    yield Delta(image)
                    yield finished([image])
                else:
                    yield item

    def _kind(self, request: ImageRequest) -> Kind:
        if request.style is None:
            return self._options.kind
        if request.style not in _TILINGS:
            raise Invalid(
                f"'style' is {request.style[:64]!r}; allowed: {', '.join(_TILINGS)}, which say what the "
                "picture is.",
                param="style",
            )
        return request.style

    # --- in the thread -------------------------------------------------------------------------

    def _enlarged(self, canvas: Canvas, kind: Kind, scale: int, say: Say) -> Canvas:
        import numpy as np

        network = self._network(_name(kind, scale))
        pixels = flattened(canvas).colours
        made = np.zeros((canvas.height * scale, canvas.width * scale, 3), np.uint8)
        tiling = _TILINGS[kind]
        parts = tiles(canvas.height, canvas.width, tiling)
        for done, tile in enumerate(parts):
            say(progress(done, len(parts)))
            tile.place(network.enlarged(tile.cut(pixels)), made, scale, tiling.blend)
        say(progress(len(parts), len(parts)))
        alpha = canvas.alpha
        if alpha is not None:
            alpha = resized(alpha, canvas.width * scale, canvas.height * scale)
        return Canvas(made, alpha)

    def _network(self, name: str) -> Network:
        from inferhub.backends.realesrgan.network import Network

        if name not in self._networks:
            threads = self._options.threads or default_threads()
            self._networks[name] = Network(cast("Path", self.weights), name, threads)
        return self._networks[name]


def _name(kind: Kind, scale: int) -> str:
    return _PHOTO if kind == "photo" else f"animevideov3-x{scale}"


def _refuse_size(request: ImageRequest, call: Call) -> None:
    if request.size not in (None, "auto"):
        raise Unsupported(
            f"Model {call.model!r} makes pictures a whole number of times larger: say so in 'scale', not in "
            "'size'.",
            param="size",
        )
