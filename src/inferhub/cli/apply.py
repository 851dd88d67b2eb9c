"""`inferhub apply`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._context import connect, load, open_catalog, read_text
from inferhub.cli._flags import STORAGE, Json, Key, Url, new_app, with_settings
from inferhub.cli._output import print_json

if TYPE_CHECKING:
    from inferhub.settings import Loaded, Settings
    from inferhub.settings.spec import Spec

app = new_app()


@app.command(
    epilog="""\b
Examples:
  inferhub apply -f hub.yaml
  inferhub apply -f hub.yaml --dry-run         only check it
  inferhub apply -f hub.yaml --if-revision 4   only if nobody changed it meanwhile
  inferhub apply -f hub.yaml --offline         for the next start, without a server"""
)
@with_settings(STORAGE)
def apply(
    *,
    file: Annotated[Path, typer.Option("--file", "-f", help="The hub.yaml; `-` reads standard input.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it on this machine, change nothing.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Store it in the catalog of this machine for the next start.")
    ] = False,
    if_revision: Annotated[
        int | None, typer.Option(min=0, help="Refuse if the spec in force has another revision.")
    ] = None,
    url: Url = None,
    key: Key = None,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Make the server serve what a hub.yaml says.

    The file is checked as a whole first; new models are loaded before the switch. When anything is
    wrong, everything stays as it was. Needs a key of role admin.
    """
    text = read_text(file)
    if dry_run:
        spec = check(load(flags), text, str(file))
        models = [model.name for model in spec.models]
        _tell(json, f"{file} is right: {', '.join(models) or 'no models'}.", dry_run=True, models=models)
        return
    if offline:
        loaded = load(flags)
        check(loaded, text, str(file))
        revision: int | None = asyncio.run(_store(loaded.settings, text, if_revision))
        _tell(json, f"Stored as revision {revision}, for the next start.", revision=revision, offline=True)
        return
    revision = asyncio.run(_put(text, if_revision, url, key))
    _tell(json, f"Revision {revision} is in force.", revision=revision, offline=False)


def check(loaded: Loaded, text: str, source: str) -> Spec:
    """The spec as this machine would load it. Raises `SetupError` naming every problem."""
    from inferhub.assembly import check_model
    from inferhub.settings.spec import load_spec

    return load_spec(text, env=loaded.environment, source=source, check_model=check_model)


async def _put(text: str, if_revision: int | None, url: str | None, key: str | None) -> int | None:
    async with connect(url, key) as client:
        return (await client.put_spec(text, if_revision=if_revision)).revision


async def _store(settings: Settings, text: str, if_revision: int | None) -> int:
    async with open_catalog(settings) as catalog:
        if if_revision is None:
            present = await catalog.spec()
            if_revision = present.revision if present else 0
        return (await catalog.replace_spec(text, if_revision)).revision


def _tell(as_json: bool, sentence: str, **facts: Any) -> None:
    if as_json:
        print_json(facts)
    else:
        print(sentence)
