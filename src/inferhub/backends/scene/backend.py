"""The backend itself: options, loading, and one picture per call. Loaded by the worker's host, in a child.

One thread looks at one picture after the other. Pictures are decoded by the media room's own processes.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast

import msgspec
from msgspec import Meta

from inferhub.backends.base import Backend, check_options
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import Invalid, SetupError, Unsupported, UpstreamFailed
from inferhub.core.models import Capability, Load, ModelSpec
from inferhub.core.usage import Usage
from inferhub.media import MediaPool, Picture, inspect_image
from inferhub.modalities.vision import FEATURES, Box, Feature, VisionDelta, VisionRequest, no_picture
from inferhub.telemetry.resources import default_threads

_MAX_SIDE = 1600
"""Of what is looked at: small print on a page is still read, and a picture takes 8 MB."""
_TURNED = frozenset({5, 6, 7, 8})
"""EXIF's orientations whose width is the picture's height."""

T = TypeVar("T")


class SceneOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which finders there are, and what they may take."""

    objects: str = "nanodet"
    """Weights of the detector; empty: none."""
    labels: str = "efficientnet-lite0"
    """Weights of the classifier; empty: none."""
    text: bool = True
    threads: Annotated[int, Meta(ge=1)] | None = None
    """Half the cores, because the other half serves the requests."""

    @property
    def features(self) -> frozenset[str]:
        has = {"objects": bool(self.objects), "labels": bool(self.labels), "text": self.text}
        return frozenset(name for name in (*FEATURES, "question") if has.get(name, True))


class Scene(Backend):
    """Facts of pictures."""

    Options = SceneOptions
    isolated = True
    default_slots = 2
    default_load: ClassVar[Load] = "demand"
    further_weights = ("objects", "labels")
    may_offer = frozenset({"vision"})

    @classmethod
    def offers(cls, spec: ModelSpec) -> tuple[Capability, ...]:
        return (Capability("vision", cast("SceneOptions", check_options(cls, spec)).features),)

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        return self.offers(self.spec)

    async def load(self) -> None:
        from inferhub.backends.scene import ocr

        options = cast("SceneOptions", check_options(type(self), self.spec))
        if options.text and (package := ocr.missing()):
            raise SetupError(
                f"Model {self.spec.name!r} reads text with the package {package!r}, which is not installed: "
                f"install 'inferhub[local]', or set the option 'text' to false.",
                param="backend",
            )
        from inferhub.backends.scene.finders import Finders

        self._finders = Finders(
            Path(options.objects) if options.objects else None,
            Path(options.labels) if options.labels else None,
            reads=options.text,
            threads=options.threads or default_threads(),
        )
        self._pool = MediaPool()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scene")

    async def unload(self) -> None:
        await self._pool.close()
        await asyncio.to_thread(self._thread.shutdown)
        del self._finders

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        import onnxruntime

        request = call.request
        if not isinstance(request, VisionRequest):
            raise Unsupported(f"This model cannot answer a call of modality {call.modality!r}.")
        data = _picture_of(call, request)
        picture = await self._pool.decode_image(data, max_side=_MAX_SIDE)
        width, height = _size_of(data, picture)
        switch = onnxruntime.RunOptions()
        try:
            facts = await self._work(self._look, picture, request, switch)
        finally:
            # Stops what is still being computed; without effect after the end.
            switch.terminate = True
        yield Delta(_scaled(facts, width, height))
        yield Finished(Usage(images=1, pixels=width * height))

    async def _work(self, function: Callable[..., T], *given: Any) -> T:
        """In the one thread. A cancelled caller leaves the queue; `run` stops what has begun."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *given)

    # --- in the thread -------------------------------------------------------------------------

    def _look(self, picture: Picture, request: VisionRequest, switch: Any) -> VisionDelta:
        from inferhub.backends.scene.answers import reply
        from inferhub.backends.scene.finders import Stopped, described
        from inferhub.backends.scene.pixels import on_white

        asked: tuple[Feature, ...] = tuple(request.features or FEATURES)
        # A description, or an answer, is made of all the rest.
        needs_all = request.question is not None or "description" in asked
        try:
            pixels = on_white(picture.width, picture.height, picture.rgb, picture.alpha)
            facts = self._finders.look(pixels, FEATURES if needs_all else asked, request.min_score, switch)
        except Stopped as error:
            raise UpstreamFailed("The picture was given up.") from error
        except Exception as error:  # the engines' exceptions share no base class
            raise UpstreamFailed("The vision engine failed on this picture.") from error
        answer = reply(request.question, facts, self._finders.kinds) if request.question is not None else None
        facts = described(facts)
        left_out: dict[str, Any] = {name: [] for name in FEATURES if name not in asked}
        if "description" in left_out:
            left_out["description"] = ""
        return msgspec.structs.replace(facts, reply=answer, **left_out)


def _picture_of(call: Call, request: VisionRequest) -> bytes:
    if call.media:
        return call.media[0].data
    if request.image is None:
        raise no_picture()
    head, comma, data = request.image.partition(",")
    if not comma or not head[:5].lower() == "data:" or not head.lower().endswith(";base64"):
        raise Invalid("'image' must be a data URL with base64, or a web address.", param="image")
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("'image' is not valid base64.", param="image", code="invalid_base64") from error


def _size_of(data: bytes, picture: Picture) -> tuple[int, int]:
    """Of the picture as it came, upright."""
    if max(picture.width, picture.height) < _MAX_SIDE:
        return picture.width, picture.height
    try:
        head = inspect_image(data)
    except Invalid:
        return picture.width, picture.height
    return (head.height, head.width) if head.orientation in _TURNED else (head.width, head.height)


def _scaled(facts: VisionDelta, width: int, height: int) -> VisionDelta:
    """With places on the picture as it came."""
    if (width, height) == (facts.width, facts.height):
        return facts
    across, down = width / facts.width, height / facts.height

    def on_whole(box: Box) -> Box:
        return (
            round(box[0] * across, 1),
            round(box[1] * down, 1),
            round(box[2] * across, 1),
            round(box[3] * down, 1),
        )

    change = msgspec.structs.replace
    return change(
        facts,
        width=width,
        height=height,
        text=[change(line, box=on_whole(line.box)) for line in facts.text],
        objects=[change(seen, box=on_whole(seen.box)) for seen in facts.objects],
    )
