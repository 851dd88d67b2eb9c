"""`inferhub projects`: works on the catalog itself, like `inferhub keys`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._context import load, open_catalog
from inferhub.cli._flags import STORAGE, Json, new_app, with_settings
from inferhub.cli._output import day, print_json, table
from inferhub.cli._records import OfTenant, act, find
from inferhub.core.clock import new_id, unix_s
from inferhub.core.tenancy import DEFAULT_TENANT, Project

if TYPE_CHECKING:
    from inferhub.settings import Settings

app = new_app(
    no_args_is_help=True,
    help="Create, list and disable projects of tenants.\n\n"
    "A project is a part of a tenant with keys, limits and lines on the bill of its own.",
)

ProjectId = Annotated[str, typer.Argument(metavar="ID", help="As `inferhub projects list` shows it.")]


@app.command(
    "list", epilog="\b\nExamples:\n  inferhub projects list\n  inferhub projects list --tenant ten_4f09c1d2"
)
@with_settings(STORAGE)
def list_projects(*, tenant: OfTenant = None, json: Json = False, flags: Mapping[str, Any]) -> None:
    """List the projects, disabled ones too."""
    projects = asyncio.run(_list(load(flags).settings, tenant))
    if json:
        print_json([asdict(project) for project in projects])
        return
    rows = [(p.id, p.name, p.tenant_id, day(p.created_at), day(p.disabled_at)) for p in projects]
    print(table(("ID", "NAME", "TENANT", "CREATED", "DISABLED"), rows))


@app.command(
    epilog="""\b
Examples:
  inferhub projects create search --tenant ten_4f09c1d2
  PROJECT=$(inferhub projects create batch)"""
)
@with_settings(STORAGE)
def create(
    name: Annotated[str, typer.Argument(help="No two projects of a tenant have the same.")],
    *,
    tenant: Annotated[str, typer.Option(metavar="ID", help="Whose project it is.")] = DEFAULT_TENANT,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Create a project.

    Only its id goes to standard output, so that a shell can take it.
    """
    project = asyncio.run(_create(load(flags).settings, name, tenant))
    if json:
        print_json(asdict(project))
        return
    print(project.id)
    typer.echo(f"Project {project.name!r} of the tenant {project.tenant_id}.", err=True)


@app.command(epilog="\b\nExamples:\n  inferhub projects disable prj_77b0")
@with_settings(STORAGE)
def disable(project_id: ProjectId, *, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Refuse every key and user of a project, until it is enabled again."""
    project = asyncio.run(_switch(load(flags).settings, project_id, is_disabled=True))
    _tell(project, f"is disabled since {day(project.disabled_at)}", as_json=json)


@app.command(epilog="\b\nExamples:\n  inferhub projects enable prj_77b0")
@with_settings(STORAGE)
def enable(project_id: ProjectId, *, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Let the keys and users of a disabled project work again."""
    project = asyncio.run(_switch(load(flags).settings, project_id, is_disabled=False))
    _tell(project, "is enabled", as_json=json)


async def _list(settings: Settings, tenant_id: str | None) -> list[Project]:
    async with open_catalog(settings) as catalog:
        if tenant_id is not None:
            find(await catalog.tenants(), tenant_id, "tenant", param="tenant")
        return [p for p in await catalog.projects() if tenant_id in (None, p.tenant_id)]


async def _create(settings: Settings, name: str, tenant_id: str) -> Project:
    async with open_catalog(settings) as catalog:
        find(await catalog.tenants(), tenant_id, "tenant", param="tenant")
        project = Project(new_id("prj"), tenant_id, name, unix_s())
        await catalog.create_project(project, act("project.create", project.id, tenant_id, name=name))
        return project


async def _switch(settings: Settings, project_id: str, *, is_disabled: bool) -> Project:
    async with open_catalog(settings) as catalog:
        project = find(await catalog.projects(), project_id, "project")
        changed = replace(project, disabled_at=(project.disabled_at or unix_s()) if is_disabled else None)
        made = act("project.change", project.id, project.tenant_id, disabled=str(is_disabled))
        await catalog.replace_project(changed, made)
        return changed


def _tell(project: Project, state: str, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(project))
    else:
        print(f"Project {project.id} ({project.name}) {state}.")
