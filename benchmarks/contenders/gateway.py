"""InferHub itself, started by its own command with settings a user would have: everything on.

Every instance gets a data folder of its own, so nobody's catalog or key is touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.processes import Processes, Running, module

_KEPT = ("INFERHUB_CACHE_DIR", "INFERHUB_WEIGHTS_MIRROR")


def remote_model(upstream: str) -> dict[str, Any]:
    """The model `mock`, answered by an OpenAI-compatible server."""
    return {
        "name": "mock",
        "backend": "openai_compatible",
        "slots": 1024,
        "options": {"base_url": f"{upstream}/v1", "api_key": "none"},
    }


def echo_model() -> dict[str, Any]:
    return {"name": "mock", "backend": "echo", "slots": 64}


def start_serve(processes: Processes, name: str, models: Sequence[Mapping[str, Any]]) -> Running:
    """`inferhub serve`, ready."""
    return start_http(processes, "serve", environment(processes, name, models))


def start_pair(processes: Processes, models: Sequence[Mapping[str, Any]]) -> tuple[Running, Running]:
    """`inferhub gateway` and the `inferhub worker` behind it, over gRPC."""
    env = {**environment(processes, "worker", ()), "INFERHUB_WORKER_LISTEN": "127.0.0.1:0"}
    del env["INFERHUB_SPEC_FILE"]
    worker = processes.start("worker", module("inferhub", "worker", "--json"), env=env)
    env = {**environment(processes, "gateway", models), "INFERHUB_WORKER": worker.url}
    return start_http(processes, "gateway", env), worker


def start_http(processes: Processes, verb: str, env: Mapping[str, str], key: str | None = None) -> Running:
    """`serve` or `gateway`; the key is shown at the first start on a data folder only."""
    running = processes.start(verb, module("inferhub", verb, "--json"), env=env)
    key = running.announced["admin_key"] or key
    return replace(running, headers={"authorization": f"Bearer {key}"})


def environment(processes: Processes, name: str, models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Settings by environment, free of the caller's own; only the weights stay where they are."""
    folder = processes.folder / f"data-{name}"
    folder.mkdir(exist_ok=True)
    spec = folder / "hub.yaml"
    spec.write_text(json.dumps({"models": list(models)}))  # JSON is YAML
    others = {key: "" for key in os.environ if key.startswith("INFERHUB_") and key not in _KEPT}
    return {
        **others,
        "INFERHUB_DATA_DIR": str(folder),
        "INFERHUB_SPEC_FILE": str(spec),
        "INFERHUB_HOST": "127.0.0.1",
        "INFERHUB_PORT": "0",
        "INFERHUB_METRICS_PORT": "0",
    }
