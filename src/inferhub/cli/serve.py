"""`inferhub serve`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from inferhub.cli._flags import Json, new_app, setting_names, with_settings
from inferhub.cli._serving import run_service

app = new_app()

_OF_OTHERS = (
    "worker", "worker_listen", "worker_token_file", "worker_refresh_s", "processes", "advertise",
    "orchestrator", "orchestrator_listen", "fleet_url", "launcher", "fleet_cert_file",
    "fleet_key_file", "fleet_ca_file",
)  # fmt: skip


@app.command(
    epilog="""\b
Examples:
  inferhub serve
  inferhub serve --port 9000 --log-format text
  inferhub serve --model ./Qwen2.5-0.5B-Instruct.gguf
  inferhub serve --modalities chat,asr,tts
  inferhub serve --workers 2 --max-workers 4
  inferhub serve --spec hub.yaml --json
\b
Every flag is also a line of inferhub.toml (port = 9000) and a variable (INFERHUB_PORT=9000)."""
)
@with_settings(setting_names(without=_OF_OTHERS))
def serve(
    *,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="PATH", help="Serve this GGUF file instead of a spec.")
    ] = None,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Serve models behind an OpenAI-compatible URL, all in one process.

    With --workers the models run in as many processes beside it, which are kept running.

    Without --model or --spec it serves the applied spec (see `inferhub apply`), and on a new
    installation a small chat model and an embedding model. Ctrl-C lets running calls finish, a
    second Ctrl-C does not.
    """
    run_service("serve", flags, as_json=json, model=model)
