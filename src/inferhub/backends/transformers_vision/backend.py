"""The backend itself: options, loading, one answer per call. Loaded by the worker's host, in a child."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Literal, cast

import msgspec
from msgspec import Meta

from inferhub.backends.base import Backend, check_options
from inferhub.backends.pictures import Say, Studio
from inferhub.backends.transformers_vision.asking import conversation
from inferhub.backends.transformers_vision.folder import checked_folder
from inferhub.backends.transformers_vision.speaking import Ended, Manner, Piece, Speaker
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import Unsupported
from inferhub.core.models import Capability
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta, ChatRequest
from inferhub.telemetry.resources import choose_device, default_threads

_FEATURES = frozenset({"stream", "vision", "seed", "top_k"})
_MAX_SIDE = 2048


class TransformersVisionOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Defaults are decided by the machine."""

    max_tokens: Annotated[int, Meta(ge=1)] = 1024
    """Of an answer, where the client names no number."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """How numbers are kept: float32 on a CPU, bfloat16 on a GPU."""
    threads: Annotated[int, Meta(ge=1)] | None = None
    """Half the cores, because the other half serves the requests."""


class TransformersVision(Backend):
    """One vision-language model."""

    Options = TransformersVisionOptions
    isolated = True
    needs_weights = True
    default_slots = 1
    may_offer = frozenset({"chat"})

    capabilities: tuple[Capability, ...] = ()

    async def load(self) -> None:
        self._options = options = cast("TransformersVisionOptions", check_options(type(self), self.spec))
        folder = checked_folder(self.weights, self.spec.name)
        self.device = choose_device(self.spec.device)
        self._studio = Studio("transformers")

        def speaker() -> Speaker:
            threads = options.threads or default_threads()
            return Speaker(folder, device=self.device, dtype=options.dtype, threads=threads)

        try:
            self._speaker = await self._studio.work(speaker)
        except BaseException:
            await self._studio.close()
            raise
        self.capabilities = (Capability("chat", _FEATURES, self._speaker.context_tokens),)

    async def unload(self) -> None:
        await self._studio.close()
        del self._speaker

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request = call.request
        if not isinstance(request, ChatRequest):
            raise Unsupported(f"This model cannot answer a call of modality {call.modality!r}.")
        asked = conversation(request)
        pictures = [await self._studio.opened(file, max_side=_MAX_SIDE) for file in asked.pictures]
        manner = self._manner(request)

        def answer(say: Say) -> None:
            self._speaker.answer(asked, pictures, manner, say)

        async with aclosing(self._studio.told(answer, "The model failed on this conversation.")) as told:
            async for item in told:
                if isinstance(item, Piece):
                    if item.text:
                        yield Delta(ChatDelta(content=item.text))
                elif isinstance(item, Ended):
                    reason: Literal["length", "stop"] = "length" if item.is_cut else "stop"
                    yield Delta(ChatDelta(finish_reason=reason, stop_sequence=item.stopped_by))
                    pixels = sum(picture.width * picture.height for picture in pictures)
                    yield Finished(
                        Usage(item.input_tokens, item.output_tokens, images=len(pictures), pixels=pixels)
                    )

    def _manner(self, request: ChatRequest) -> Manner:
        stop = request.stop or ()
        return Manner(
            max_tokens=request.max_output_tokens or self._options.max_tokens,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )
