"""`inferhub users`: works on the catalog itself, like `inferhub keys`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._context import load, open_catalog
from inferhub.cli._flags import STORAGE, Json, new_app, with_settings
from inferhub.cli._output import day, print_json, table
from inferhub.cli._records import InProject, InTenant, OfTenant, act, find, project_for
from inferhub.core.clock import new_id, unix_s
from inferhub.core.tenancy import Role, User

if TYPE_CHECKING:
    from inferhub.settings import Settings

app = new_app(
    no_args_is_help=True,
    help="Create, list and disable people who sign in with OpenID Connect.\n\n"
    "A user is known by what an issuer says of him; the issuers are in hub.yaml. Programs use API keys: "
    "inferhub keys.",
)

UserId = Annotated[str, typer.Argument(metavar="ID", help="As `inferhub users list` shows it.")]


@app.command(
    "list", epilog="\b\nExamples:\n  inferhub users list\n  inferhub users list --tenant ten_4f09c1d2"
)
@with_settings(STORAGE)
def list_users(*, tenant: OfTenant = None, json: Json = False, flags: Mapping[str, Any]) -> None:
    """List the users, disabled ones too."""
    users = asyncio.run(_list(load(flags).settings, tenant))
    if json:
        print_json([asdict(user) for user in users])
        return
    rows = [
        (u.id, u.name, u.role.value, u.tenant_id, u.project_id, u.issuer, u.subject, day(u.disabled_at))
        for u in users
    ]
    print(table(("ID", "NAME", "ROLE", "TENANT", "PROJECT", "ISSUER", "SUBJECT", "DISABLED"), rows))


@app.command(
    epilog="""\b
Examples:
  inferhub users create "Ada L." --issuer https://login.example.com --subject 248289761001
  inferhub users create Bob --issuer https://login.example.com --subject bob --role tenant_admin \\
    --tenant ten_4f09c1d2"""
)
@with_settings(STORAGE)
def create(
    name: Annotated[str, typer.Argument(help="For people; shown in the list.")],
    *,
    issuer: Annotated[str, typer.Option(metavar="URL", help="As in the token's `iss`, and in hub.yaml.")],
    subject: Annotated[str, typer.Option(metavar="TEXT", help="The token's `sub`.")],
    role: Annotated[Role, typer.Option(help="What the user may do.")] = Role.ENTERPRISE,
    tenant: InTenant = None,
    project: InProject = None,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Create a user of an OpenID Connect issuer.

    Only the id goes to standard output, so that a shell can take it.
    """
    user = asyncio.run(_create(load(flags).settings, name, (issuer, subject), role, (tenant, project)))
    if json:
        print_json(asdict(user))
        return
    print(user.id)
    typer.echo(f"User {user.name!r}, role {user.role.value}, of the project {user.project_id}.", err=True)


@app.command(epilog="\b\nExamples:\n  inferhub users disable usr_0c51")
@with_settings(STORAGE)
def disable(user_id: UserId, *, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Refuse a user, whatever his token says."""
    user = asyncio.run(_change(load(flags).settings, user_id, disabled=True))
    _tell(user, f"is disabled since {day(user.disabled_at)}", as_json=json)


@app.command(epilog="\b\nExamples:\n  inferhub users enable usr_0c51")
@with_settings(STORAGE)
def enable(user_id: UserId, *, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Let a disabled user in again."""
    user = asyncio.run(_change(load(flags).settings, user_id, disabled=False))
    _tell(user, "is enabled", as_json=json)


@app.command("set-role", epilog="\b\nExamples:\n  inferhub users set-role usr_0c51 tenant_admin")
@with_settings(STORAGE)
def set_role(
    user_id: UserId,
    role: Annotated[Role, typer.Argument(help="The new one.")],
    *,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Change what a user may do."""
    user = asyncio.run(_change(load(flags).settings, user_id, role=role))
    _tell(user, f"has the role {user.role.value}", as_json=json)


async def _list(settings: Settings, tenant_id: str | None) -> list[User]:
    async with open_catalog(settings) as catalog:
        if tenant_id is not None:
            find(await catalog.tenants(), tenant_id, "tenant", param="tenant")
        return [user for user in await catalog.users() if tenant_id in (None, user.tenant_id)]


async def _create(
    settings: Settings,
    name: str,
    identity: tuple[str, str],
    role: Role,
    owner: tuple[str | None, str | None],
) -> User:
    async with open_catalog(settings) as catalog:
        project = await project_for(catalog, *owner)
        user = User(new_id("usr"), project.tenant_id, project.id, *identity, name, role, unix_s())
        made = act("user.create", user.id, user.tenant_id, name=name, role=role.value)
        await catalog.create_user(user, made)
        return user


async def _change(
    settings: Settings, user_id: str, *, disabled: bool | None = None, role: Role | None = None
) -> User:
    async with open_catalog(settings) as catalog:
        user = find(await catalog.users(), user_id, "user")
        said = {}
        if disabled is not None:
            user = replace(user, disabled_at=(user.disabled_at or unix_s()) if disabled else None)
            said["disabled"] = str(disabled)
        if role is not None:
            user = replace(user, role=role)
            said["role"] = role.value
        await catalog.replace_user(user, act("user.change", user.id, user.tenant_id, **said))
        return user


def _tell(user: User, state: str, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(user))
    else:
        print(f"User {user.id} ({user.name}) {state}.")
