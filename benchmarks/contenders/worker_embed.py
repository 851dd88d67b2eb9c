"""InferHub's worker without HTTP: 32 calls at once into one loaded embedding model, with and without batches.

In a process of its own. Shows what batching gains where neither a door nor a client takes part.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders.minilm import MAX_BATCH, THREADS_VARIABLE, WEIGHTS_VARIABLE
from inferhub.backends.onnx_embedding import OnnxEmbedding
from inferhub.core.call import Call, Chunk
from inferhub.core.models import ModelSpec
from inferhub.modalities import modalities
from inferhub.testing.calls import make_call
from inferhub.worker.engine import InProcessEngine


async def measure(texts: Sequence[str], rounds: int, callers: int = 32) -> dict[str, float]:
    """Texts a second, the better of the rounds."""
    weights = Path(os.environ[WEIGHTS_VARIABLE])
    options = {"threads": int(os.environ[THREADS_VARIABLE])}
    calls = [_call(text) for text in texts]
    best: dict[str, float] = {}
    for kind, max_batch in (("single", 1), ("batched", MAX_BATCH)):
        spec = ModelSpec("minilm", "onnx_embedding", device="cpu", options=options, max_batch=max_batch)
        backend = OnnxEmbedding(spec, weights)
        await backend.load()
        engine = InProcessEngine(backend)
        await _all(engine, calls[:64], callers)  # warms it, and teaches its batcher
        for _ in range(rounds):
            begin = time.perf_counter()
            await _all(engine, calls, callers)
            best[kind] = max(best.get(kind, 0.0), len(calls) / (time.perf_counter() - begin))
        await engine.unload()
    return best


def _call(text: str) -> Call:
    call = make_call("embedding", "minilm", input=text, timeout_s=600)
    modality = modalities()["embedding"]
    return replace(call, cost=modality.cost(call.request, (), len(call.body)))


async def _all(engine: InProcessEngine, calls: Sequence[Call], callers: int) -> None:
    waiting = iter(calls)

    async def caller() -> None:
        for call in waiting:
            await engine.infer(call, _drop)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())


async def _drop(_chunk: Chunk) -> None:
    pass


def main() -> None:
    import uvloop

    texts = json.load(sys.stdin)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(texts, int(sys.argv[1])))))


if __name__ == "__main__":
    main()
