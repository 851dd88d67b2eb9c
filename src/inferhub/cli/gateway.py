"""`inferhub gateway`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inferhub.cli._context import load
from inferhub.cli._flags import Json, new_app, setting_names, with_settings
from inferhub.cli._serving import Herald, run_service, spec_text

if TYPE_CHECKING:
    from inferhub.settings import Loaded

app = new_app()

_OF_WORKERS = (
    "worker_listen", "worker_id", "advertise", "cache_dir", "weights_mirror", "strict_local_transport",
    "orchestrator_listen", "fleet_url", "launcher", "workers", "max_workers", "heartbeat_interval_s",
    "lease_s",
)  # fmt: skip
_MODULE = "inferhub.cli._gateway_process"


@app.command(
    epilog="""\b
Examples:
  inferhub gateway --worker 127.0.0.1:50051
  inferhub gateway --worker gpu-1:50051 --worker gpu-2:50051 --worker-token-file token --spec hub.yaml
  inferhub gateway --worker gpu-1:50051 --processes 4
  inferhub gateway --orchestrator hub-1:50050 --orchestrator hub-2:50050
\b
Start the workers first: inferhub worker --listen HOST:PORT"""
)
@with_settings(setting_names(without=_OF_WORKERS))
def gateway(*, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Serve the HTTP API; the models run on workers.

    The gateway holds the API keys and the spec, and tells its workers which models to load. Remote
    models, such as a cloud provider's, run beside the gateway itself.
    """
    loaded = load(flags)
    if loaded.settings.processes == 1:
        run_service("gateway", flags, as_json=json)
    else:
        _run_processes(loaded, as_json=json)


def _run_processes(loaded: Loaded, *, as_json: bool) -> None:
    """This process only looks after the others, so it loads none of what they need to serve."""
    import asyncio

    from inferhub.supervisor.service import supervise
    from inferhub.telemetry.logging import configure_logging

    settings = loaded.settings
    configure_logging(settings.log_level, settings.log_format)
    text = spec_text(settings, None)
    with Herald("gateway", settings, as_json=as_json) as herald:
        asyncio.run(
            supervise(loaded, text, module=_MODULE, announce=herald.announce, on_progress=herald.loading)
        )
