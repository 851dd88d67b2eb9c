"""The backend itself: sizes, pictures to start from, masks, steps. Loaded by the worker's host."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import msgspec
from msgspec import Meta

from inferhub.backends.base import Backend, check_options
from inferhub.backends.diffusers.folder import family_of
from inferhub.backends.diffusers.pipes import Dtype, Pipes, Work
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
    progress,
    resized,
)
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import Invalid, Unsupported
from inferhub.core.models import Capability, ModelSpec
from inferhub.modalities.image import MAX_PIXELS, ImageDelta, ImageRequest, size_of
from inferhub.telemetry.resources import choose_device, default_threads

if TYPE_CHECKING:
    from inferhub.backends.pictures import Pixels

_LEAST_SIDE = 64
_EDIT_STRENGTH = 0.8
_VARIATION_STRENGTH = 0.6
_OPAQUE = 128
_FEATURES = frozenset(
    {
        "stream", "generate", "edit", "variation", "mask", "n", "seed", "steps", "guidance", "strength",
        "negative_prompt",
    }
)  # fmt: skip


class DiffusersOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Defaults fit Stable Diffusion."""

    steps: Annotated[int, Meta(ge=1, le=200)] = 25
    """Where a request names no number. Distilled models want far fewer: 4 for Flux schnell."""
    guidance: Annotated[float, Meta(ge=0, le=50)] | None = None
    """How closely pictures follow the prompt, where a request does not say; None: as the pipeline does."""
    max_pixels: Annotated[int, Meta(ge=64 * 64, le=MAX_PIXELS)] = 1536 * 1536
    """Largest picture; memory grows with it."""
    dtype: Dtype = "auto"
    """How numbers are kept: float32 on a CPU, bfloat16 on a GPU."""
    variant: str | None = None
    """`fp16` where the folder's files are named `….fp16.safetensors`."""
    threads: Annotated[int, Meta(ge=1)] | None = None
    """Half the cores, because the other half serves the requests."""


class Diffusers(Backend):
    """One model that makes pictures from text."""

    Options = DiffusersOptions
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
        self._options = options = cast("DiffusersOptions", check_options(type(self), self.spec))
        self._family = family_of(self.weights, self.spec.name)
        self._studio = Studio("diffusers")
        self.device = choose_device(self.spec.device)

        def pipes() -> Pipes:
            return Pipes(
                cast("Path", self.weights),
                self._family,
                device=self.device,
                dtype=options.dtype,
                variant=options.variant,
                threads=options.threads or default_threads(),
            )

        try:
            self._pipes = await self._studio.work(pipes)
        except BaseException:
            await self._studio.close()
            raise

    async def unload(self) -> None:
        await self._studio.close()
        del self._pipes

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request = asked_of(call)
        if request.negative_prompt is not None and self._family == "flux":
            raise Unsupported("Flux models know no 'negative_prompt'.", param="negative_prompt")
        original, mask = await self._started_from(call, request)
        work = self._work(request, original, mask)
        made: list[ImageDelta] = []

        def paint(say: Say) -> None:
            for index in range(request.n):
                say(self._painted(replace(work, seed=work.seed + index), original, request, say))

        async with aclosing(self._studio.told(paint, "The picture could not be painted.")) as told:
            async for item in told:
                if isinstance(item, _Preview):
                    preview = await self._studio.image(item.canvas, request, item.index)
                    yield Delta(msgspec.structs.replace(preview, kind="partial"))
                elif isinstance(item, Canvas):
                    made.append(await self._studio.image(item, request, len(made)))
                    yield Delta(made[-1])
                else:
                    yield item
        yield finished(made)

    # --- what is to be done --------------------------------------------------------------------

    async def _started_from(self, call: Call, request: ImageRequest) -> tuple[Canvas | None, Pixels | None]:
        """The picture that is changed, in the size of the answer, and where."""
        if request.task == "generate":
            return None, None
        files = files_of(call, most=1)
        canvas = await self._studio.opened(files[0], max_side=4096)
        masks = [file for file in call.media if file.field == "mask"]
        mask = None
        if masks:
            mask = _mask(await self._studio.opened(masks[0]))
            if mask.shape != canvas.colours.shape[:2]:
                raise Invalid(
                    f"'mask' is {mask.shape[1]}x{mask.shape[0]}, and 'image' {canvas.width}x{canvas.height}; "
                    "they must have one size.",
                    param="mask",
                )
        elif request.task == "edit" and canvas.alpha is not None and canvas.alpha.min() < _OPAQUE:
            # As OpenAI has it: what is transparent is to be painted.
            mask = _mask(canvas)
        canvas = Canvas(flattened(canvas).colours, mask)
        size = size_of(request) or self._within(canvas.width, canvas.height)
        canvas = covering(canvas, *size)
        return Canvas(canvas.colours), canvas.alpha

    def _within(self, width: int, height: int) -> tuple[int, int]:
        """The picture's own size, or as much of it as may be painted."""
        scale = min(1.0, (self._options.max_pixels / (width * height)) ** 0.5)
        return max(_LEAST_SIDE, int(width * scale)), max(_LEAST_SIDE, int(height * scale))

    def _work(self, request: ImageRequest, original: Canvas | None, mask: Pixels | None) -> Work:
        if original is not None:
            width, height = original.width, original.height
        else:
            width, height = size_of(request) or (self._pipes.side, self._pipes.side)
        if width * height > self._options.max_pixels or min(width, height) < _LEAST_SIDE:
            raise Invalid(
                f"'size' {width}x{height}: this model paints {_LEAST_SIDE} pixels at each side and more, up "
                f"to {self._options.max_pixels} in all.",
                param="size",
            )
        grid = self._pipes.grid
        wide, high = -(-width // grid) * grid, -(-height // grid) * grid
        usual = _VARIATION_STRENGTH if request.task == "variation" else _EDIT_STRENGTH
        return Work(
            prompt=request.prompt,
            width=wide,
            height=high,
            steps=request.steps or self._options.steps,
            seed=secrets.randbits(32) if request.seed is None else request.seed,
            guidance=self._options.guidance if request.guidance is None else request.guidance,
            negative_prompt=request.negative_prompt,
            image=None if original is None else resized(original.colours, wide, high),
            mask=None if mask is None else resized(mask, wide, high),
            strength=usual if request.strength is None else request.strength,
        )

    # --- in the thread -------------------------------------------------------------------------

    def _painted(self, work: Work, original: Canvas | None, request: ImageRequest, say: Say) -> Canvas:
        if work.image is not None and int(work.steps * work.strength) == 0:
            # Not a single step: nothing is changed.
            return cast("Canvas", original)
        width, height = size_of(request) or (work.width, work.height)
        if original is not None:
            width, height = original.width, original.height
        previews = _Previews(request.partial_images or 0)

        def on_step(done: int, steps: int, preview: Callable[[], Pixels]) -> None:
            say(progress(done, steps))
            if previews.is_due(done, steps):
                say(_Preview(Canvas(resized(preview(), width, height)), previews.taken()))

        made = self._pipes.painted(work, on_step)
        if original is None:
            return covering(Canvas(made), width, height)
        made = resized(made, width, height)
        if work.mask is None:
            return Canvas(made)
        return Canvas(_filled(original.colours, made, resized(work.mask, width, height)))


class _Preview(msgspec.Struct):
    canvas: Canvas
    index: int


class _Previews:
    """When to show how a picture comes along: evenly over its steps, and not at the last one."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._taken = 0

    def is_due(self, done: int, steps: int) -> bool:
        return done < steps and self._taken < self._wanted and done >= self._next(steps)

    def _next(self, steps: int) -> float:
        return steps * (self._taken + 1) / (self._wanted + 1)

    def taken(self) -> int:
        self._taken += 1
        return self._taken - 1


def _mask(canvas: Canvas) -> Pixels:
    """255 where the mask is transparent, or, of one that is nowhere transparent, where it is bright."""
    import numpy as np

    if canvas.alpha is not None:
        return np.where(canvas.alpha < _OPAQUE, 255, 0).astype(np.uint8)
    bright = canvas.colours.mean(axis=2) >= _OPAQUE
    return np.where(bright, 255, 0).astype(np.uint8)


def _filled(original: Pixels, made: Pixels, mask: Pixels) -> Pixels:
    """Outside the mask, the original to the last bit: models blur what they only pass on."""
    import numpy as np

    share = mask[..., None].astype(np.float32) / 255
    return as_pixels(original * (1 - share) + made * share)
