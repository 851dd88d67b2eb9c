"""`inferhub keys`: works on the catalog itself, so it needs no running server and no key."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._context import load, open_catalog
from inferhub.cli._flags import STORAGE, Json, new_app, with_settings
from inferhub.cli._output import day, print_json, table
from inferhub.cli._records import InProject, InTenant, OfTenant, act, find, key_id_of, project_for
from inferhub.cli._times import expiry, overlap_s
from inferhub.core.clock import unix_s
from inferhub.core.tenancy import ApiKey, Role

if TYPE_CHECKING:
    from inferhub.settings import Settings

app = new_app(
    no_args_is_help=True,
    help="Create, list, rotate and revoke API keys.\n\n"
    "They are kept in the catalog of this machine, as hashes only. A running server follows within a second.",
)

KeyId = Annotated[str, typer.Argument(metavar="ID", help="As `inferhub keys list` shows it.")]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A key as the flags describe it."""

    name: str
    role: Role
    tenant_id: str | None
    project_id: str | None
    scopes: tuple[str, ...] | None
    models: tuple[str, ...] | None
    expires: str | None


@app.command(
    epilog="""\b
Examples:
  inferhub keys create alice
  inferhub keys create deploy --role admin
  inferhub keys create app --tenant ten_4f09c1d2 --expires 90d
  inferhub keys create bot --scope inference:chat --model "llama-*" --model assistant
  export OPENAI_API_KEY=$(inferhub keys create me)"""
)
@with_settings(STORAGE)
def create(
    name: Annotated[str, typer.Argument(help="Whose or what for; shown in the list.")],
    *,
    role: Annotated[
        Role,
        typer.Option(
            help="`admin` may change the platform, `tenant_admin` his tenant; the others only call models."
        ),
    ] = Role.ENTERPRISE,
    tenant: InTenant = None,
    project: InProject = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help="Give it only this of its role's rights. May be repeated."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Model it may call; a star may end it. May be repeated."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="A time from now such as 30d, or a day or time in UTC.")
    ] = None,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Create a key and show it, this once.

    Only the key goes to standard output, so that a shell can take it.
    """
    scopes, models = tuple(scope) if scope else None, tuple(model) if model else None
    wanted = _Wanted(name, role, tenant, project, scopes, models, expires)
    plaintext, key = asyncio.run(_create(load(flags).settings, wanted))
    _show(plaintext, key, {}, as_json=json)


@app.command(
    "list", epilog="\b\nExamples:\n  inferhub keys list\n  inferhub keys list --tenant ten_4f09c1d2 --json"
)
@with_settings(STORAGE)
def list_keys(*, tenant: OfTenant = None, json: Json = False, flags: Mapping[str, Any]) -> None:
    """List the keys, revoked ones too."""
    keys = asyncio.run(_list(load(flags).settings, tenant))
    if json:
        print_json([_card(key) for key in keys])
        return
    rows = [
        (
            key.id,
            key.name,
            key.role.value,
            key.tenant_id,
            key.project_id,
            day(key.created_at),
            day(key.expires_at),
            day(key.last_used_at),
            day(key.revoked_at),
        )
        for key in keys
    ]
    head = ("ID", "NAME", "ROLE", "TENANT", "PROJECT", "CREATED", "EXPIRES", "LAST USED", "REVOKED")
    print(table(head, rows))


@app.command(
    epilog="""\b
Examples:
  inferhub keys rotate ih_4fA09bQzX1c2
  inferhub keys rotate ih_4fA09bQzX1c2 --overlap 7d
  inferhub keys rotate ih_4fA09bQzX1c2 --overlap 0     the old one ends at once"""
)
@with_settings(STORAGE)
def rotate(
    key_id: KeyId,
    *,
    overlap: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old key works on: 0, or at most 90d.")
    ] = "24h",
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Replace a key by a new one with the same rights, and show that, this once.

    Only the new key goes to standard output, so that a shell can take it.
    """
    plaintext, new, old = asyncio.run(_rotate(load(flags).settings, key_id_of(key_id), overlap_s(overlap)))
    _show(plaintext, new, {"replaces": _card(old)}, as_json=json)
    if not json:
        typer.echo(f"The old one, {old.id}, works until {day(old.expires_at)}.", err=True)


@app.command(epilog="\b\nExamples:\n  inferhub keys revoke ih_4fA09bQzX1c2")
@with_settings(STORAGE)
def revoke(key_id: KeyId, *, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Revoke a key for good."""
    key = asyncio.run(_revoke(load(flags).settings, key_id_of(key_id)))
    if json:
        print_json(_card(key))
    else:
        print(f"Key {key.id} ({key.name}) is revoked since {day(key.revoked_at)}.")


async def _create(settings: Settings, wanted: _Wanted) -> tuple[str, ApiKey]:
    from inferhub.modalities import modalities
    from inferhub.stores.catalog.checks import check_scopes
    from inferhub.stores.catalog.keys import issue
    from inferhub.stores.catalog.pepper import load_pepper

    expires_at = expiry(wanted.expires, unix_s()) if wanted.expires is not None else None
    if wanted.scopes is not None:
        check_scopes(wanted.scopes, wanted.role, modalities())
    async with open_catalog(settings) as catalog:
        pepper = load_pepper(settings)
        await catalog.check_pepper(pepper)
        project = await project_for(catalog, wanted.tenant_id, wanted.project_id)
        plaintext, key = issue(
            wanted.name,
            wanted.role,
            pepper,
            tenant_id=project.tenant_id,
            project_id=project.id,
            scopes=wanted.scopes,
            models=wanted.models,
            expires_at=expires_at,
        )
        made = act("key.create", key.id, key.tenant_id, name=key.name, role=key.role.value)
        await catalog.create_key(key, made)
        return plaintext, key


async def _list(settings: Settings, tenant_id: str | None) -> list[ApiKey]:
    async with open_catalog(settings) as catalog:
        if tenant_id is not None:
            find(await catalog.tenants(), tenant_id, "tenant", param="tenant")
        return [key for key in await catalog.keys() if tenant_id in (None, key.tenant_id)]


async def _rotate(settings: Settings, key_id: str, overlap: int) -> tuple[str, ApiKey, ApiKey]:
    from inferhub.stores.catalog.keys import reissue
    from inferhub.stores.catalog.pepper import load_pepper

    async with open_catalog(settings) as catalog:
        pepper = load_pepper(settings)
        await catalog.check_pepper(pepper)
        old = find(await catalog.keys(), key_id, "API key")
        plaintext, new = reissue(old, pepper)
        until = unix_s() + overlap
        made = act("key.rotate", old.id, old.tenant_id, successor=new.id, expires_at=str(until))
        return plaintext, new, await catalog.rotate_key(old.id, new, until, made)


async def _revoke(settings: Settings, key_id: str) -> ApiKey:
    async with open_catalog(settings) as catalog:
        key = find(await catalog.keys(), key_id, "API key")
        return await catalog.revoke_key(key.id, act("key.revoke", key.id, key.tenant_id, name=key.name))


def _show(plaintext: str, key: ApiKey, more: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({**_card(key), "key": plaintext, **more})
        return
    print(plaintext)
    ends = f", until {day(key.expires_at)}" if key.expires_at else ""
    typer.echo(
        f"Key {key.id} for {key.name!r}, role {key.role.value}{ends}. It is stored hashed and not shown "
        "again.",
        err=True,
    )


def _card(key: ApiKey) -> dict[str, Any]:
    """Everything but the digest."""
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role.value,
        "tenant_id": key.tenant_id,
        "project_id": key.project_id,
        "scopes": None if key.scopes is None else sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "rotated_to": key.rotated_to,
        "revoked_at": key.revoked_at,
    }
