"""The engine alone: xllamacpp in a process of its own, no HTTP, no queue, no InferHub.

Loads, warms every slot, answers all prompts at once and prints tokens and seconds as JSON.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import module, run_json

_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Given to InferHub as the model's options and to the engine as its own, so that both do the same."""

    slots: int
    threads: int
    context_tokens: int = 2048
    batch_tokens: int = 32


@dataclass(frozen=True, slots=True)
class Generated:
    tokens: int
    elapsed_s: float
    cpu_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.elapsed_s

    @property
    def cpu_ms_per_token(self) -> float:
        return self.cpu_s * 1e3 / self.tokens


def generate_raw(
    weights: Path, settings: EngineSettings, bodies: Sequence[str], warm_up: Sequence[str]
) -> Generated:
    """`warm_up` asks other questions, one a slot: a prompt that is measured must not be known already."""
    given = {
        "weights": str(weights),
        "settings": asdict(settings),
        "bodies": list(bodies),
        "warm_up": list(warm_up),
    }
    said = run_json("the raw engine", module("benchmarks.contenders.raw_engine"), given=given)
    return Generated(**said)


def _load(weights: str, settings: EngineSettings, folder: str) -> Any:
    """The parameters that `backends/llamacpp` chooses on a CPU."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = weights
    params.verbosity = 1
    params.hostnames = [f"{folder}/engine.sock"]  # its HTTP server cannot be switched off
    params.n_parallel = settings.slots
    params.n_ctx = settings.slots * settings.context_tokens
    params.kv_unified = params.ctx_shift = params.fit_params = False
    params.cache_ram_mib = 0
    params.n_batch = params.n_ubatch = settings.batch_tokens
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = settings.threads
        cpu.poll = 0
    params.use_jinja = True
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_Q8_0
    params.n_gpu_layers = 0
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def _ask(server: Any, body: str) -> int:
    """The number of tokens of the answer."""
    events: list[bytes] = []

    def on_event(event: bytes) -> bool:
        events.append(event)
        return False

    server.handle_chat_completions(body.encode(), on_event)
    counts = _TOKENS.findall(b"".join(events[-3:]))
    return int(counts[-1])


def main() -> None:
    given = json.load(sys.stdin)
    settings = EngineSettings(**given["settings"])
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(settings.slots) as pool:
        server = _load(given["weights"], settings, folder)
        list(pool.map(lambda body: _ask(server, body), given["warm_up"]))
        begin, cpu_begin = time.perf_counter(), time.process_time()
        tokens = sum(pool.map(lambda body: _ask(server, body), given["bodies"]))
        elapsed_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu_begin
    print(json.dumps({"tokens": tokens, "elapsed_s": elapsed_s, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main()
