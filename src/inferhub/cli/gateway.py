"""`inferhub gateway`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferhub.cli._flags import Json, new_app, setting_names, with_settings
from inferhub.cli._serving import run_service

app = new_app()

_OF_WORKERS = ("worker_listen", "worker_id", "cache_dir", "weights_mirror", "strict_local_transport")


@app.command(
    epilog="""\b
Examples:
  inferhub gateway --worker 127.0.0.1:50051
  inferhub gateway --worker gpu-1:50051 --worker gpu-2:50051 --worker-token-file token --spec hub.yaml
\b
Start the workers first: inferhub worker --listen HOST:PORT"""
)
@with_settings(setting_names(without=_OF_WORKERS))
def gateway(*, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Serve the HTTP API; the models run on workers.

    The gateway holds the API keys and the spec, and tells its workers which models to load. Remote
    models, such as a cloud provider's, run beside the gateway itself.
    """
    run_service("gateway", flags, as_json=json)
