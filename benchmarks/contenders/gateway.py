"""InferHub itself, started by its own command with settings a user would have: everything on.

Every instance gets a data folder of its own, so nobody's catalog or key is touched.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from benchmarks.measure import CannotMeasureError
from benchmarks.processes import Processes, Running, module
from inferhub.testing.backing import running_postgres, running_valkey
from inferhub.testing.servers import StartError

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


@contextmanager
def everything_on(processes: Processes, name: str, models: Sequence[Mapping[str, Any]]) -> Iterator[Running]:
    """`inferhub serve` with PostgreSQL and Redis behind it, and a caller that every kind of limit binds."""
    with ExitStack() as stack:
        folder = processes.folder
        try:
            postgres = stack.enter_context(running_postgres(folder))
            valkey = stack.enter_context(running_valkey(folder))
        except StartError as error:
            raise CannotMeasureError(str(error)) from error
        env = {
            **environment(processes, name, models, prices=[_PRICE]),
            "INFERHUB_CATALOG_URL": postgres.url,
            "INFERHUB_USAGE_URL": postgres.url,
            "INFERHUB_COUNTERS_URL": valkey.url,
            "INFERHUB_CACHE_URL": valkey.url,
        }
        running = start_http(processes, "serve", env)
        key = running.headers["authorization"].removeprefix("Bearer ")
        for level, subject in (("tenant", "ten_default"), ("project", "prj_default"), ("key", key[:15])):
            for unit, window, limit in _LIMITS:
                body = {"level": level, "subject_id": subject, "unit": unit, "window": window, "limit": limit}
                _post(running, "/admin/v1/limits", body)
        yield running


_PRICE = {"model": "mock", "input_per_mtok": "0.15", "output_per_mtok": "0.60"}
_LIMITS: tuple[tuple[str, str, int | str], ...] = (
    ("requests", "minute", 10_000_000),
    ("tokens", "minute", 100_000_000_000),
    ("concurrent", "now", 100_000),
    ("usd", "month", "1000000"),
)
"""What large customers have: limits that bind every call and are never reached here."""


def _post(running: Running, path: str, body: Mapping[str, Any]) -> None:
    headers = {**running.headers, "content-type": "application/json"}
    address = running.url + path
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)  # noqa: S310 - our own
    with urllib.request.urlopen(request, timeout=30):  # noqa: S310
        pass


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
    # What is measured is the way to a model; the cache has a measure of its own.
    return replace(running, headers={"authorization": f"Bearer {key}", "x-inferhub-cache": "off"})


def environment(
    processes: Processes,
    name: str,
    models: Sequence[Mapping[str, Any]],
    prices: Sequence[Mapping[str, Any]] = (),
) -> dict[str, str]:
    """Settings by environment, free of the caller's own; only the weights stay where they are."""
    folder = processes.folder / f"data-{name}"
    folder.mkdir(exist_ok=True)
    spec = folder / "hub.yaml"
    spec.write_text(json.dumps({"models": list(models), "prices": list(prices)}))  # JSON is YAML
    others = {key: "" for key in os.environ if key.startswith("INFERHUB_") and key not in _KEPT}
    return {
        **others,
        "INFERHUB_DATA_DIR": str(folder),
        "INFERHUB_SPEC_FILE": str(spec),
        "INFERHUB_HOST": "127.0.0.1",
        "INFERHUB_PORT": "0",
        "INFERHUB_METRICS_PORT": "0",
    }
