"""`inferhub tenants`: works on the catalog itself, like `inferhub keys`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._context import load, open_catalog
from inferhub.cli._flags import STORAGE, Json, new_app, with_settings
from inferhub.cli._output import day, print_json, table
from inferhub.cli._records import TenantId, act, find
from inferhub.core.clock import new_id, unix_s
from inferhub.core.errors import Invalid
from inferhub.core.tenancy import Project, Tenant

if TYPE_CHECKING:
    from inferhub.settings import Settings

app = new_app(
    no_args_is_help=True,
    help="Create, list and disable tenants.\n\n"
    "A tenant has projects, users, keys, limits and a bill of its own, and sees nobody else's. They are kept "
    "in the catalog of this machine; a running server follows within a second.",
)


@app.command("list", epilog="\b\nExamples:\n  inferhub tenants list\n  inferhub tenants list --json")
@with_settings(STORAGE)
def list_tenants(*, json: Json = False, flags: Mapping[str, Any]) -> None:
    """List the tenants, disabled ones too."""
    from inferhub.gateway.webhooks import shown

    tenants = asyncio.run(_list(load(flags).settings))
    if json:
        print_json([_card(tenant) for tenant in tenants])
        return
    rows = [
        (t.id, t.name, day(t.created_at), day(t.disabled_at), shown(t.webhook_url) if t.webhook_url else "-")
        for t in tenants
    ]
    print(table(("ID", "NAME", "CREATED", "DISABLED", "WEBHOOK"), rows))


@app.command(
    epilog="""\b
Examples:
  inferhub tenants create "Acme Ltd"
  TENANT=$(inferhub tenants create acme)"""
)
@with_settings(STORAGE)
def create(
    name: Annotated[str, typer.Argument(help="No two tenants have the same.")],
    *,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Create a tenant, with a first project.

    Only its id goes to standard output, so that a shell can take it.
    """
    tenant, project = asyncio.run(_create(load(flags).settings, name))
    if json:
        print_json({**asdict(tenant), "project_id": project.id})
        return
    print(tenant.id)
    typer.echo(f"Tenant {tenant.name!r}, with the project {project.id} ({project.name}).", err=True)


@app.command(epilog="\b\nExamples:\n  inferhub tenants disable ten_4f09c1d2")
@with_settings(STORAGE)
def disable(tenant_id: TenantId, *, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Refuse every key and user of a tenant, until it is enabled again."""
    tenant = asyncio.run(_switch(load(flags).settings, tenant_id, is_disabled=True))
    _tell(tenant, f"is disabled since {day(tenant.disabled_at)}", as_json=json)


@app.command(epilog="\b\nExamples:\n  inferhub tenants enable ten_4f09c1d2")
@with_settings(STORAGE)
def enable(tenant_id: TenantId, *, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Let the keys and users of a disabled tenant work again."""
    tenant = asyncio.run(_switch(load(flags).settings, tenant_id, is_disabled=False))
    _tell(tenant, "is enabled", as_json=json)


@app.command(
    "set-webhook",
    epilog="""\b
Examples:
  inferhub tenants set-webhook ten_4f09c1d2 https://hooks.example.com/budget
  inferhub tenants set-webhook ten_4f09c1d2 http://hooks.internal/b --egress-allow hooks.internal
  inferhub tenants set-webhook ten_4f09c1d2 --remove""",
)
@with_settings((*STORAGE, "egress_allow"))
def set_webhook(
    tenant_id: TenantId,
    url: Annotated[str | None, typer.Argument(help="Where budget alerts are posted.")] = None,
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Post them nowhere.")] = False,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Say where the alerts of a tenant's budgets go, and show the secret that they are signed with.

    Only the secret goes to standard output. It is always the same for a tenant.
    """
    if remove == (url is not None):
        raise typer.BadParameter("Give either a URL or --remove.", param_hint="'URL'")
    tenant, secret = asyncio.run(_set_webhook(load(flags).settings, tenant_id, url))
    if json:
        print_json({**_card(tenant), **({"webhook_secret": secret} if secret else {})})
    elif secret is None:
        print(f"Tenant {tenant.id} ({tenant.name}) has no webhook.")
    else:
        print(secret)
        typer.echo(f"Alerts of {tenant.name!r} are posted to {url}, signed with this secret.", err=True)


async def _list(settings: Settings) -> tuple[Tenant, ...]:
    async with open_catalog(settings) as catalog:
        return await catalog.tenants()


async def _create(settings: Settings, name: str) -> tuple[Tenant, Project]:
    async with open_catalog(settings) as catalog:
        tenant = Tenant(new_id("ten"), name, unix_s())
        await catalog.create_tenant(tenant, act("tenant.create", tenant.id, tenant.id, name=name))
        project = Project(new_id("prj"), tenant.id, "default", tenant.created_at)
        made = act("project.create", project.id, tenant.id, name=project.name)
        await catalog.create_project(project, made)
        return tenant, project


async def _switch(settings: Settings, tenant_id: str, *, is_disabled: bool) -> Tenant:
    async with open_catalog(settings) as catalog:
        tenant = find(await catalog.tenants(), tenant_id, "tenant")
        changed = replace(tenant, disabled_at=(tenant.disabled_at or unix_s()) if is_disabled else None)
        await catalog.replace_tenant(
            changed, act("tenant.change", tenant.id, tenant.id, disabled=str(is_disabled))
        )
        return changed


async def _set_webhook(settings: Settings, tenant_id: str, url: str | None) -> tuple[Tenant, str | None]:
    from inferhub.egress import check_url
    from inferhub.gateway.webhooks import MAX_CHARS, seal, webhook_secret
    from inferhub.stores.catalog.pepper import load_pepper

    if url is not None:
        check_url(url, settings.egress_allow, param="webhook_url")
        if len(url) > MAX_CHARS:
            raise Invalid(f"A webhook's address has at most {MAX_CHARS} characters.", param="webhook_url")
    async with open_catalog(settings) as catalog:
        pepper = load_pepper(settings)
        await catalog.check_pepper(pepper)
        sealed = None if url is None else seal(url, pepper, tenant_id)
        tenant = replace(find(await catalog.tenants(), tenant_id, "tenant"), webhook_url=sealed)
        # Not the address itself: it may hold a token.
        made = act("tenant.change", tenant.id, tenant.id, webhook_url="changed" if url else "removed")
        await catalog.replace_tenant(tenant, made)
        return tenant, webhook_secret(pepper, tenant.id) if url else None


def _card(tenant: Tenant) -> dict[str, Any]:
    """Path and query of a webhook are as good as a password, and sealed."""
    from inferhub.gateway.webhooks import shown

    return {**asdict(tenant), "webhook_url": tenant.webhook_url and shown(tenant.webhook_url)}


def _tell(tenant: Tenant, state: str, *, as_json: bool) -> None:
    if as_json:
        print_json(_card(tenant))
    else:
        print(f"Tenant {tenant.id} ({tenant.name}) {state}.")
