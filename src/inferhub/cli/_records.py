"""What the verbs that change the catalog share: acts for the audit log, records by id, and whose they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

from inferhub.core.audit import Act
from inferhub.core.errors import Conflict, NotFound
from inferhub.core.tenancy import DEFAULT_PROJECT, Project

if TYPE_CHECKING:
    from inferhub.core.quota import Level
    from inferhub.stores.catalog.base import Catalog

TenantId = Annotated[str, typer.Argument(metavar="ID", help="As `inferhub tenants list` shows it.")]
OfTenant = Annotated[
    str | None, typer.Option("--tenant", metavar="ID", help="Only of this tenant; otherwise of all.")
]
InTenant = Annotated[
    str | None,
    typer.Option("--tenant", metavar="ID", help="Its tenant; its project must be the only one, or named."),
]
InProject = Annotated[
    str | None, typer.Option("--project", metavar="ID", help="Its project; otherwise the default one.")
]

_KEY_ID_CHARS = 15


class Record(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Record)


def act(action: str, target: str, tenant_id: str | None, **detail: str) -> Act:
    """For the audit log: who may write the catalog's files needs no key, so the actor is the CLI."""
    return Act("cli", action, target, tenant_id, detail)


def find(records: Iterable[R], wanted: str, noun: str, *, param: str | None = None) -> R:
    """The one with this id. Raises `NotFound` with the verb that lists them."""
    for record in records:
        if record.id == wanted:
            return record
    plural = noun.rsplit(maxsplit=1)[-1] + "s"
    raise NotFound(
        f"There is no {noun} with the id {wanted[:40]!r}; `inferhub {plural} list` shows them.",
        param=param or "id",
    )


def key_id_of(text: str) -> str:
    """A whole key pasted by mistake is as good as its id, and must not be repeated anywhere."""
    return text[:_KEY_ID_CHARS] if text.startswith("ih_") else text


async def project_for(catalog: Catalog, tenant_id: str | None, project_id: str | None) -> Project:
    """Where something new belongs. Raises `NotFound`, or `Conflict` where that has to be said."""
    projects = await catalog.projects()
    if tenant_id is None:
        return find(projects, project_id or DEFAULT_PROJECT, "project", param="project")
    find(await catalog.tenants(), tenant_id, "tenant", param="tenant")
    theirs = [project for project in projects if project.tenant_id == tenant_id]
    if project_id is not None:
        return find(theirs, project_id, "project", param="project")
    if len(theirs) != 1:
        listed = ", ".join(f"{p.id} ({p.name})" for p in theirs[:10]) or "none yet"
        raise Conflict(
            f"The tenant {tenant_id!r} has {len(theirs)} projects ({listed}); name one with --project.",
            param="project",
        )
    return theirs[0]


async def subject_of(catalog: Catalog, subject_id: str) -> tuple[Level, str]:
    """Tenant, project or key, by the beginning of its id, and whose it is. Raises `NotFound`."""
    if subject_id.startswith("ten_"):
        return "tenant", find(await catalog.tenants(), subject_id, "tenant", param="subject").id
    if subject_id.startswith("prj_"):
        return "project", find(await catalog.projects(), subject_id, "project", param="subject").tenant_id
    if subject_id.startswith("ih_"):
        return "key", find(await catalog.keys(), key_id_of(subject_id), "API key", param="subject").tenant_id
    raise NotFound(
        f"A limit binds a tenant (ten_…), a project (prj_…) or a key (ih_…); got {subject_id[:40]!r}.",
        param="subject",
    )
