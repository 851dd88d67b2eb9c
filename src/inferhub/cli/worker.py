"""`inferhub worker`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from inferhub.cli._flags import Json, new_app, with_settings
from inferhub.cli._serving import run_service

app = new_app()

_SETTINGS = (
    "config", "worker_listen", "worker_id", "worker_token_file", "orchestrator", "advertise", "labels",
    "fleet_cert_file", "fleet_key_file", "fleet_ca_file", "metrics_host", "metrics_port", "cache_dir",
    "weights_mirror", "spec_file", "log_level", "log_format", "color", "drain_grace_s", "load_timeout_s",
    "modalities", "memory_budget_bytes", "vram_share", "model_idle_ttl_s", "room_wait_s",
)  # fmt: skip


@app.command(
    epilog="""\b
Examples:
  inferhub worker
  inferhub worker --listen 0.0.0.0:50051 --worker-token-file token
  inferhub worker --model ./model.gguf
  inferhub worker --modalities asr,tts
  inferhub worker --orchestrator hub-1:50050 --labels gpu=h100,region=eu
\b
Without an orchestrator, where clients come in: inferhub gateway --worker THIS_HOST:50051"""
)
@with_settings(_SETTINGS)
def worker(
    *,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="PATH", help="Load this GGUF file before gateways come.")
    ] = None,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Run models for gateways.

    Listens for gateways over gRPC and serves no HTTP API of its own. Gateways say which models it
    loads; with --model or --spec it loads those before the first gateway comes.
    """
    run_service("worker", flags, as_json=json, model=model)
