"""The border to xllamacpp: its parameters, its blocking calls, its errors in our words.

Made by `backend.load`, called in the threads of `slots`. Nothing else imports xllamacpp.
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from inferhub.core.errors import (
    BackendRefused,
    ContextOverflow,
    InferHubError,
    Invalid,
    Overloaded,
    SetupError,
    UpstreamFailed,
)

Route = Literal["chat", "completion"]

_QUIET = 1
"""The engine's log level `error`: anything above would put prompts into the log."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to load, decided by the backend."""

    weights: Path
    slots: int
    context_tokens: int
    """Of each slot."""
    batch_tokens: int
    threads: int
    gpu: int | None
    """Which CUDA device; None keeps everything on the CPU."""
    gpu_layers: int
    keys_q8: bool
    chat_template: str | None
    mmproj: Path | None = None
    """What turns pictures into tokens, for a model that sees."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to generate."""

    route: Route
    body: bytes
    prompt_param: str
    """What to name when the prompt is at fault."""
    grammar_param: str | None = None
    """What to name when the engine cannot make a grammar of a schema."""


class _Failure(msgspec.Struct):
    """The `error` object of an engine event."""

    message: str = ""
    type: str = ""
    code: int = 500
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class Engine:
    """A loaded model. `serve` and `busy` block, and may be called from several threads at once."""

    def __init__(self, plan: Plan) -> None:
        """Load; raises `SetupError`."""
        # One file system address, in a folder that only this user may enter and that is gone as soon as the
        # engine is up: its HTTP server cannot be switched off, but nobody can connect to it.
        folder = tempfile.mkdtemp(prefix="inferhub-")
        try:
            self._server = _load(plan, f"{folder}/engine.sock")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def serve(self, request: Request, on_event: Callable[[bytes], bool]) -> None:
        """Generate. Returns when the answer ended or `on_event` returned True; raises `InferHubError`."""
        try:
            # Looked up each time: a traceback that outlives the call must not keep the model in memory.
            if request.route == "chat":
                self._server.handle_chat_completions(request.body, on_event)
            else:
                self._server.handle_completions(request.body, on_event)
        except Exception as error:
            raise refusal(str(error), request, is_value=isinstance(error, ValueError)) from error

    def close(self) -> None:
        """Free the model; joins the engine's own threads."""
        del self._server

    def busy(self) -> int:
        """How many requests hold a slot or wait for one, as the engine counts them."""
        metrics = str(self._server.handle_metrics())
        found = re.findall(r"^llamacpp:requests_(?:processing|deferred) (\d+)", metrics, re.MULTILINE)
        return sum(int(number) for number in found)


def _load(plan: Plan, socket: str) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(plan.weights)
    params.verbosity = _QUIET
    params.hostnames = [socket]
    params.api_keys = [secrets.token_hex(32)]
    params.ui = params.endpoint_slots = params.endpoint_props = False
    params.endpoint_metrics = True

    # Each slot owns its whole context. A pool shared by all slots would need less memory, but when it is
    # full the engine fails every call that is running.
    params.n_parallel = plan.slots
    params.n_ctx = plan.slots * plan.context_tokens
    params.kv_unified = False
    params.ctx_shift = False
    params.fit_params = False
    # The engine would keep up to 8 GiB of old prompts beside the slots.
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 4

    # A cancel takes effect between two batches, so the batch is the longest that a slot stays taken.
    params.n_batch = params.n_ubatch = plan.batch_tokens
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = plan.threads
        # Spinning threads starve each other as soon as the CPU is shared: 3 tokens/s instead of 30.
        cpu.poll = 0

    params.use_jinja = True
    params.prefill_assistant = False
    if plan.chat_template is not None:
        params.chat_template = plan.chat_template
    if plan.mmproj is not None:
        params.mmproj.path = str(plan.mmproj)
        params.mmproj_use_gpu = plan.gpu is not None
    if plan.keys_q8:
        params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_Q8_0
    if plan.gpu is None:
        params.n_gpu_layers = 0
        # On CPUs the fused kernel is the slower one for small batches: 41 s against 28 s for 2,400 tokens.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    else:
        params.n_gpu_layers = plan.gpu_layers
        params.main_gpu = plan.gpu
        params.split_mode = xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_NONE
    try:
        return xllamacpp.Server(params)
    except Exception as error:
        raise SetupError(
            f"llama.cpp cannot load {plan.weights.name}; its reason is in the log above. Check that the "
            f"file is a whole GGUF language model, and that {plan.slots} slots of {plan.context_tokens} "
            f"tokens fit into memory (`slots`, option `context_tokens`)"
            f"{', and that `mmproj` was made for this very model' if plan.mmproj else ''}.",
            param="weights",
        ) from error


def gpus() -> list[str]:
    """Names of the GPUs that this build of the engine can use, in its own order."""
    import xllamacpp

    kind = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_GPU
    return [str(device["name"]) for device in xllamacpp.get_device_info() if device["type"] == kind]


def failure_of(error: Any, request: Request) -> InferHubError:
    """The `error` of an event as the exception it stands for."""
    try:
        failure = msgspec.convert(error, _Failure)
    except msgspec.ValidationError:
        failure = _Failure()
    if failure.n_prompt_tokens is not None and failure.n_ctx is not None:
        return ContextOverflow(
            f"'{request.prompt_param}' has {failure.n_prompt_tokens} tokens; "
            f"the context of this model is {failure.n_ctx} tokens.",
            param=request.prompt_param.partition("[")[0],
        )
    if failure.code == 503:
        return Overloaded()
    if failure.code == 400:
        return refusal(failure.message, request, is_value=True)
    return UpstreamFailed(f"The engine failed: {failure.message[:_MAX_REASON]}")


_MAX_REASON = 300
_PREAMBLE = re.compile(
    r"^(Unable to generate parser.*?failed: |Failed to initialize samplers: |got exception: )+"
)


def refusal(message: str, request: Request, *, is_value: bool) -> InferHubError:
    """What the engine did not like about a request before it generated anything."""
    # Later lines repeat the request.
    reason = _PREAMBLE.sub("", message).partition("\n")[0][:_MAX_REASON]
    if request.grammar_param and re.search(r"schema|grammar|pattern", message, re.IGNORECASE):
        return Invalid(
            f"'{request.grammar_param}' cannot be followed by this engine: {reason}",
            param=request.grammar_param,
        )
    if is_value:
        return Invalid(f"The engine refused '{request.prompt_param}': {reason}", param=request.prompt_param)
    return BackendRefused(f"The engine refused the request: {reason}", param=request.prompt_param)
