"""Servers of the same embedding model: InferHub with and without batches, LitServe, BentoML.

Same weights, tokenizer, threads, largest batch and answer; each collects its batches in its own way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.client import Target
from benchmarks.contenders.environment import contenders_python
from benchmarks.contenders.gateway import start_serve
from benchmarks.contenders.minilm import MAX_BATCH, THREADS_VARIABLE, WEIGHTS_VARIABLE
from benchmarks.processes import Processes, Running, free_port

WEIGHTS = "minilm-l6-v2"
PATH = "/v1/embeddings"


def start_hub(processes: Processes, name: str, *, threads: int, max_batch: int) -> Running:
    model: dict[str, Any] = {
        "name": "minilm",
        "backend": "onnx_embedding",
        "weights": WEIGHTS,
        "device": "cpu",
        "options": {"threads": threads},
        "max_batch": max_batch,
    }
    return start_serve(processes, name, [model])


def start_litserve(processes: Processes, weights: Path, threads: int) -> Running:
    port = free_port()
    arguments = [contenders_python(), "-m", "benchmarks.contenders.litserve_embed", str(port)]
    return _start(processes, "litserve", arguments, port, _model(weights, threads))


def start_bentoml(processes: Processes, weights: Path, threads: int) -> Running:
    port = free_port()
    service = "benchmarks.contenders.bentoml_embed:Embed"
    arguments = [contenders_python(), "-m", "bentoml", "serve", service, "--host", "127.0.0.1"]
    env = {"BENTOML_HOME": str(processes.folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    return _start(
        processes, "bentoml", [*arguments, "--port", str(port)], port, {**_model(weights, threads), **env}
    )


def _model(weights: Path, threads: int) -> dict[str, str]:
    return {
        WEIGHTS_VARIABLE: str(weights),
        THREADS_VARIABLE: str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }


def _start(processes: Processes, name: str, arguments: list[str], port: int, env: dict[str, str]) -> Running:
    url = f"http://127.0.0.1:{port}"
    return replace(processes.start(name, arguments, env=env, url=f"{url}/"), url=url)


def target(name: str, contender: Running, texts: Sequence[str]) -> Target:
    """Vectors in base64 from everybody, as OpenAI's own client asks for them."""
    bodies = tuple(json.dumps(_body(name, text), separators=(",", ":")) for text in texts)
    return Target(name, contender.url + PATH, contender.headers, bodies)


def _body(name: str, text: str) -> dict[str, object]:
    if name == "bentoml":
        return {"texts": [text]}
    return {"model": "minilm", "input": text, "encoding_format": "base64"}


__all__ = ["MAX_BATCH", "PATH", "WEIGHTS", "start_bentoml", "start_hub", "start_litserve", "target"]
