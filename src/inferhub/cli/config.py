"""`inferhub config`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from inferhub.cli._context import load, read_text, write_new
from inferhub.cli._flags import PLACES, Json, new_app, with_settings
from inferhub.cli._output import print_json, table
from inferhub.core.errors import SetupError

app = new_app(
    no_args_is_help=True,
    help="Check and explain the settings.\n\n"
    "Settings come from defaults, inferhub.toml, .env, INFERHUB_* variables and flags; the later wins.",
)


@app.command(
    epilog="""\b
Examples:
  inferhub config check
  inferhub config check --spec hub.yaml
  inferhub config check --config /etc/inferhub.toml --json"""
)
@with_settings(PLACES)
def check(*, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Check the settings, and the hub.yaml that they name. Starts nothing."""
    from inferhub.cli.apply import check as check_spec

    loaded = load(flags)
    path = loaded.settings.spec_file
    models: list[str] | None = None
    if path:
        models = [model.name for model in check_spec(loaded, read_text(path), str(path)).models]
    changed = [name for name, origin in loaded.origins.items() if origin != "default"]
    if json:
        print_json({"ok": True, "changed": changed, "spec_file": path, "models": models})
        return
    print(f"The settings are right; {len(changed)} of {len(loaded.origins)} differ from the defaults.")
    if path:
        print(f"{path} is right: {', '.join(models or ()) or 'no models'}.")


@app.command(
    epilog="""\b
Examples:
  inferhub config explain
  inferhub config explain port
  INFERHUB_PORT=9000 inferhub config explain port --json"""
)
@with_settings(PLACES)
def explain(
    name: Annotated[str | None, typer.Argument(help="One setting; otherwise all.")] = None,
    *,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Show each setting's value and where it comes from. Secrets are never shown."""
    rows = load(flags).explain()
    if name is not None:
        wanted = name.replace("-", "_").removeprefix("INFERHUB_").lower()
        known = [row[0] for row in rows]
        rows = [row for row in rows if row[0] == wanted]
        if not rows:
            from inferhub.settings.nearest import did_you_mean

            raise SetupError(f"There is no setting {name!r}.{did_you_mean(wanted, known)}", param="name")
    if json:
        print_json({name: {"value": value, "origin": origin} for name, value, origin in rows})
    else:
        print(table(("SETTING", "VALUE", "ORIGIN"), rows))


@app.command(
    "import",
    epilog="""\b
Examples:
  inferhub config import litellm.yaml > hub.yaml
  inferhub config import litellm.yaml --output hub.yaml
  inferhub config import litellm.yaml --json""",
)
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A LiteLLM proxy's config.yaml.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write; must not exist yet."),
    ] = None,
    json: Json = False,
) -> None:
    """Turn a LiteLLM configuration into a hub.yaml, and name what could not be carried over."""
    from inferhub.settings.litellm import import_litellm

    imported = import_litellm(read_text(path), str(path))
    if output is not None:
        write_new(output, imported.text)
    if json:
        print_json(imported)
        return
    if output is None:
        print(imported.text, end="")
    told = [f"{path}: {len(imported.left_out)} things were not carried over."] if imported.left_out else []
    told += [f"- {sentence}" for sentence in imported.left_out]
    if imported.variables:
        told.append(f"Set these before you use it: {', '.join(imported.variables)}.")
    if output is not None:
        told.append(f"Written to {output}. Next: inferhub config check --spec {output}")
    for line in told:
        typer.echo(line, err=True)


@app.command(epilog="\b\nExamples:\n  inferhub config schema > hub.schema.json")
def schema(
    json: Annotated[bool, typer.Option("--json", help="The same: a schema is JSON.", hidden=True)] = False,
) -> None:
    """Print the JSON Schema of hub.yaml, for editors."""
    from inferhub.settings.spec import json_schema

    print_json(json_schema())
