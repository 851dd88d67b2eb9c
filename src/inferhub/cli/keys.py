"""`inferhub keys`: works on the catalog itself, so it needs no running server and no key."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._context import load, open_catalog
from inferhub.cli._flags import STORAGE, Json, new_app, with_settings
from inferhub.cli._output import day, print_json, table
from inferhub.core.tenancy import ApiKey, Role

if TYPE_CHECKING:
    from inferhub.settings import Settings

app = new_app(
    no_args_is_help=True,
    help="Create, list and revoke API keys.\n\n"
    "They are kept in the catalog of this machine, as hashes only. A running server follows within a second.",
)


@app.command(
    epilog="""\b
Examples:
  inferhub keys create alice
  inferhub keys create deploy --role admin
  export OPENAI_API_KEY=$(inferhub keys create me)"""
)
@with_settings(STORAGE)
def create(
    name: Annotated[str, typer.Argument(help="Whose or what for; shown in the list.")],
    *,
    role: Annotated[
        Role, typer.Option(help="`admin` may change the platform, the others only call models.")
    ] = Role.ENTERPRISE,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Create a key and show it, this once.

    Only the key goes to standard output, so that a shell can take it.
    """
    plaintext, key = asyncio.run(_create(load(flags).settings, name, role))
    if json:
        print_json({**_card(key), "key": plaintext})
        return
    print(plaintext)
    typer.echo(f"Key {key.id} for {name!r}, role {role}. It is stored hashed and not shown again.", err=True)


@app.command("list", epilog="\b\nExamples:\n  inferhub keys list\n  inferhub keys list --json")
@with_settings(STORAGE)
def list_keys(*, json: Json = False, flags: Mapping[str, Any]) -> None:
    """List the keys, revoked ones too."""
    keys = asyncio.run(_list(load(flags).settings))
    if json:
        print_json([_card(key) for key in keys])
        return
    rows = [(key.id, key.name, key.role.value, day(key.created_at), day(key.revoked_at)) for key in keys]
    print(table(("ID", "NAME", "ROLE", "CREATED", "REVOKED"), rows))


@app.command(epilog="\b\nExamples:\n  inferhub keys revoke ih_4fA09bQzX1c2")
@with_settings(STORAGE)
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `inferhub keys list` shows it.")],
    *,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Revoke a key for good."""
    key = asyncio.run(_revoke(load(flags).settings, key_id))
    if json:
        print_json(_card(key))
    else:
        print(f"Key {key.id} ({key.name}) is revoked since {day(key.revoked_at)}.")


async def _create(settings: Settings, name: str, role: Role) -> tuple[str, ApiKey]:
    from inferhub.stores.catalog.keys import issue
    from inferhub.stores.catalog.pepper import load_pepper

    async with open_catalog(settings) as catalog:
        pepper = load_pepper(settings)
        await catalog.check_pepper(pepper)
        plaintext, key = issue(name, role, pepper)
        await catalog.create_key(key)
        return plaintext, key


async def _list(settings: Settings) -> tuple[ApiKey, ...]:

    async with open_catalog(settings) as catalog:
        return await catalog.keys()


async def _revoke(settings: Settings, key_id: str) -> ApiKey:

    async with open_catalog(settings) as catalog:
        # A whole key pasted by mistake is as good as its id, and must not be repeated in an error.
        return await catalog.revoke_key(key_id[:15])


def _card(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role.value,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
