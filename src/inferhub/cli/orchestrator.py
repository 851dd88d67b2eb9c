"""`inferhub orchestrator`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferhub.cli._flags import Json, new_app, with_settings
from inferhub.cli._serving import run_service

app = new_app()

_SETTINGS = (
    "config", "orchestrator_listen", "worker_token_file", "fleet_url", "heartbeat_interval_s", "lease_s",
    "launcher", "workers", "max_workers", "cache_dir", "weights_mirror", "memory_budget_bytes", "modalities",
    "fleet_cert_file", "fleet_key_file", "fleet_ca_file", "metrics_host", "metrics_port", "data_dir",
    "log_level", "log_format", "color", "drain_grace_s", "load_timeout_s",
)  # fmt: skip


@app.command(
    epilog="""\b
Examples:
  inferhub orchestrator
  inferhub orchestrator --listen 0.0.0.0:50050 --worker-token-file token
  inferhub orchestrator --launcher process --workers 2 --max-workers 4
  inferhub orchestrator --fleet-url postgresql://inferhub@db/inferhub
\b
Then, on the machines with models, and where clients come in:
  inferhub worker --orchestrator THIS_HOST:50050
  inferhub gateway --orchestrator THIS_HOST:50050"""
)
@with_settings(_SETTINGS)
def orchestrator(*, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Look after workers: who is there, what they should load, and how many there are.

    Workers register with it, gateways learn from it who is there. Calls never pass through it: while it
    is away, gateways and workers go on. Two may run where --fleet-url names a database for both.
    """
    run_service("orchestrator", flags, as_json=json)
