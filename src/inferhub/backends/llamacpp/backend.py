"""The backend itself: options, loading, capabilities, and one `run` per call. Loaded by the worker's host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Literal, cast

import msgspec
from msgspec import Meta

from inferhub.backends.base import Backend, check_options
from inferhub.backends.llamacpp import chat, completion
from inferhub.backends.llamacpp.answers import Answer, check_resumable
from inferhub.backends.llamacpp.counting import count, silent
from inferhub.backends.llamacpp.engine import Engine, Plan, gpus
from inferhub.backends.llamacpp.gguf import Header, read_header
from inferhub.backends.llamacpp.pictures import with_plain_pictures
from inferhub.backends.llamacpp.slots import Channel, Ended, Slots
from inferhub.backends.llamacpp.tools import with_tools
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import SetupError, Unsupported
from inferhub.core.models import Capability
from inferhub.core.usage import Usage
from inferhub.media import MediaPool
from inferhub.modalities.chat import ChatRequest
from inferhub.modalities.completion import CompletionRequest
from inferhub.modalities.token_count import TokenCount
from inferhub.telemetry.resources import choose_device, default_threads

_DEFAULT_CONTEXT_TOKENS = 8192
_CONTEXT_STEP = 256
"""The engine rounds contexts up to this; we round down, so that what we declare is what it has."""
_CPU_BATCH_TOKENS = 32
_GPU_BATCH_TOKENS = 512
_ALL_LAYERS = 999
_Q8_BLOCK = 32
_MAGIC = b"GGUF"

_Count = Annotated[int, Meta(ge=1)]


class LlamaCppOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Every default is decided by the model's file and the machine."""

    context_tokens: Annotated[int, Meta(ge=_CONTEXT_STEP)] | None = None
    """Prompt and answer together, of each slot. At most what the model was trained for."""
    threads: _Count | None = None
    """Half the cores, because the other half serves the requests."""
    batch_tokens: _Count | None = None
    """Of a prompt, computed in one go. A cancelled call keeps its slot for up to two of them."""
    gpu_layers: Annotated[int, Meta(ge=0)] | None = None
    """How many layers go to the GPU: all."""
    mmproj: str = ""
    """The GGUF file with the other half of a model that sees pictures."""
    keys: Literal["f16", "q8_0"] | None = None
    """How attention keys are stored: in 8 bits on a CPU, which saves a quarter of the context's memory."""


class LlamaCpp(Backend):
    """One GGUF model in llama.cpp's server engine."""

    Options = LlamaCppOptions
    isolated = True
    needs_weights = True
    further_weights = ("mmproj",)
    may_offer = frozenset({"chat", "completion", "token_count"})

    capabilities: tuple[Capability, ...] = ()

    async def load(self) -> None:
        plan, header = await asyncio.to_thread(self._plan)
        self._pool = MediaPool()
        self._engine = await asyncio.to_thread(Engine, plan)
        self._slots = Slots(plan.slots)
        self._vocabulary = header.vocabulary
        text = Capability("completion", completion.FEATURES, plan.context_tokens)
        if header.chat_template is None:
            # A base model: it would only continue the conversation's markup.
            self.capabilities = (text,)
        else:
            sees = frozenset({"vision"} if plan.mmproj is not None else ())
            self.capabilities = (
                Capability("chat", chat.FEATURES | sees, plan.context_tokens),
                text,
                Capability("token_count", frozenset({"tools"}), plan.context_tokens),
            )

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        if call.modality == "token_count":
            yield Delta(TokenCount(await self._count(call)))
            yield Finished(Usage())
            return
        answer = self._answer(await with_plain_pictures(call, self._pool))
        requests = answer.requests
        channel = Channel()
        try:
            self._slots.start(
                channel,
                range(len(requests)),
                lambda index, on_event: self._engine.serve(requests[index], on_event),
            )
            remaining = len(requests)
            while remaining:
                for item in await channel.take():
                    if isinstance(item, Ended):
                        if item.error is not None:
                            raise item.error
                        answer.end(item.index)
                        remaining -= 1
                        continue
                    for delta in answer.read(item.index, item.data):
                        yield Delta(delta)
            yield Finished(answer.usage())
        finally:
            # From here on the engine's next event stops it.
            channel.close()

    async def unload(self) -> None:
        await self._slots.close()
        await self._pool.close()
        await asyncio.to_thread(self._engine.close)

    async def slots_busy(self) -> int:
        """Slots in use, counted by the engine; waits for the batch that is being computed."""
        return await asyncio.to_thread(self._engine.busy)

    def _answer(self, call: Call) -> Answer:
        if call.resume:
            check_resumable(call.request)
        match call.request:
            case ChatRequest():
                return chat.ChatAnswer(call.request, self._vocabulary, call.resume)
            case CompletionRequest():
                return completion.CompletionAnswer(call.request, self._vocabulary, call.resume)
        raise Unsupported(f"llama.cpp cannot answer a call of modality {call.modality!r}.")

    async def _count(self, call: Call) -> int:
        return await count(self._engine, self._slots, silent(self._answer(call).requests[0]))

    def _plan(self) -> tuple[Plan, Header]:
        """Everything that can go wrong before the engine is asked. Reads the file and the machine."""
        if self.weights is None:
            raise SetupError(f"Model {self.spec.name!r} needs a GGUF file in `weights`.", param="weights")
        options = cast("LlamaCppOptions", check_options(type(self), self.spec))
        header = read_header(self.weights)
        gpu = self._choose_device()
        is_q8_possible = header.key_length is not None and header.key_length % _Q8_BLOCK == 0
        plan = Plan(
            weights=self.weights,
            slots=self.spec.slots,
            context_tokens=_context_tokens(options, header),
            batch_tokens=options.batch_tokens or (_CPU_BATCH_TOKENS if gpu is None else _GPU_BATCH_TOKENS),
            threads=options.threads or default_threads(),
            gpu=gpu,
            gpu_layers=_ALL_LAYERS if options.gpu_layers is None else options.gpu_layers,
            mmproj=_other_half(options),
            keys_q8=options.keys == "q8_0" or (options.keys is None and gpu is None and is_q8_possible),
            chat_template=with_tools(header.chat_template) if header.chat_template else None,
        )
        return plan, header

    def _choose_device(self) -> int | None:
        """The GPU's number, or None for the CPU; sets `self.device`."""
        wanted = self.spec.device
        self.device = "cpu"
        if wanted == "cpu":
            return None
        available = gpus()
        if available:
            chosen = choose_device(wanted)
            # Without the means to ask which one is free, the first is as good as any.
            self.device = "cuda:0" if chosen == "cpu" else chosen
            return int(self.device.removeprefix("cuda:"))
        if wanted == "auto":
            return None
        raise SetupError(
            f"Model {self.spec.name!r} wants {wanted}, and this build of xllamacpp has no CUDA. Install "
            f"the package's CUDA build (docs/howto/gpu.md), choose another device, or use `device: auto`.",
            param="device",
        )


def _other_half(options: LlamaCppOptions) -> Path | None:
    """Raises `SetupError` where the file is none that the engine reads."""
    if not options.mmproj:
        return None
    path = Path(options.mmproj)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise SetupError(
            f"Option 'mmproj': {path} cannot be read: {error.strerror}.", param="options"
        ) from error
    if not is_gguf:
        raise SetupError(f"Option 'mmproj': {path} is no GGUF file.", param="options")
    return path


def _context_tokens(options: LlamaCppOptions, header: Header) -> int:
    trained = header.context_tokens or _DEFAULT_CONTEXT_TOKENS
    wanted = options.context_tokens or min(_DEFAULT_CONTEXT_TOKENS, trained)
    if wanted > trained:
        raise SetupError(
            f"Option 'context_tokens' is {wanted}; this model was trained for {trained} tokens.",
            param="options",
        )
    return max(_CONTEXT_STEP, wanted // _CONTEXT_STEP * _CONTEXT_STEP)
