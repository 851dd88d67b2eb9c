"""MiniLM behind BentoML, adaptive batching on as its documentation advises: `batchable`, the same
largest batch as everybody, and a latency that lets it wait. One worker, as InferHub has one engine.

Run in the environment of `locks/contenders.lock`; imports nothing of InferHub.
"""

from __future__ import annotations

import bentoml  # type: ignore[import-not-found]

from benchmarks.contenders.minilm import MAX_BATCH, MiniLm

MAX_LATENCY_MS = 60_000
"""Its default. It is a deadline after which calls are dropped, not a wait."""


_LOGGING = {"access": {"enabled": False}}
"""A line for every request would cost it dearly; nobody else writes one."""


@bentoml.service(workers=1, threads=1, traffic={"timeout": 60, "max_concurrency": 1024}, logging=_LOGGING)
class Embed:
    def __init__(self) -> None:
        self._model = MiniLm()

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=MAX_LATENCY_MS, route="/v1/embeddings"
    )
    def embed(self, texts: list[str]) -> list[str]:
        return self._model.embed(texts)
