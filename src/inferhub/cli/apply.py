"""`inferhub apply`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._context import connect, load, open_catalog, read_text
from inferhub.cli._flags import STORAGE, Json, Key, Url, new_app, with_settings
from inferhub.cli._output import print_json
from inferhub.core.audit import Act
from inferhub.core.clock import unix_s
from inferhub.core.errors import InferHubError
from inferhub.core.prices import check_price_dates

if TYPE_CHECKING:
    from inferhub.core.usage import Price
    from inferhub.settings import Loaded
    from inferhub.settings.spec import Spec
    from inferhub.stores.catalog.base import StoredSpec

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
        spec = check(loaded, text, str(file))
        revision: int | None = asyncio.run(_store(loaded, spec, text, if_revision))
        _tell(json, f"Stored as revision {revision}, for the next start.", revision=revision, offline=True)
        return
    revision = asyncio.run(_put(text, if_revision, url, key))
    _tell(json, f"Revision {revision} is in force.", revision=revision, offline=False)


def check(loaded: Loaded, text: str, source: str) -> Spec:
    """The spec as this machine would load it. Raises `SetupError` naming every problem."""
    from inferhub.hosting import check_model
    from inferhub.settings.spec import load_spec

    return load_spec(text, env=loaded.environment, source=source, check_model=check_model)


async def _put(text: str, if_revision: int | None, url: str | None, key: str | None) -> int | None:
    async with connect(url, key) as client:
        return (await client.put_spec(text, if_revision=if_revision)).revision


async def _store(loaded: Loaded, spec: Spec, text: str, if_revision: int | None) -> int:
    async with open_catalog(loaded.settings) as catalog:
        present = await catalog.spec()
        if if_revision is None:
            if_revision = present.revision if present else 0
        check_price_dates(_prices(loaded, present), spec.prices, unix_s())
        act = Act("cli", "spec.apply", "spec")
        return (await catalog.replace_spec(text, if_revision, act)).revision


def _prices(loaded: Loaded, present: StoredSpec | None) -> Sequence[Price]:
    """Those in force, which may begin in the past; none where the stored spec cannot be read any more."""
    if present is None:
        return ()
    try:
        return check(loaded, present.text, "the applied spec").prices
    except InferHubError:
        return ()


def _tell(as_json: bool, sentence: str, **facts: Any) -> None:
    if as_json:
        print_json(facts)
    else:
        print(sentence)
