"""`inferhub env`."""

from __future__ import annotations

import shlex

import typer

from inferhub.cli._context import load, server_address, server_key
from inferhub.cli._flags import Json, Key, Url, new_app
from inferhub.cli._output import print_json

app = new_app()


@app.command(
    epilog="""\b
Examples:
  eval "$(inferhub env --key ih_…)"
  inferhub env --url http://gpu-1:8000
  export OPENAI_API_KEY=$(inferhub keys create me); eval "$(inferhub env)" """
)
def env(url: Url = None, key: Key = None, json: Json = False) -> None:
    """Print the exports that point OpenAI clients at this server.

    The key is the one given by --key or OPENAI_API_KEY: the server keeps only hashes and cannot tell it.
    """
    loaded = load()
    exports = {"OPENAI_BASE_URL": server_address(loaded, url) + "/v1"}
    if found := server_key(loaded, key):
        exports["OPENAI_API_KEY"] = found
    if json:
        print_json(exports)
        return
    for name, value in exports.items():
        print(f"export {name}={shlex.quote(value)}")
    if not found:
        typer.echo("No key is known here; make one: inferhub keys create NAME", err=True)
