"""What the admin routers share: the catalog they change, whose objects a caller sees, pages, and audit acts.

Every change goes to the catalog with its act, and is in force in this process when the answer leaves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Query, Request, Response
from pydantic import BaseModel, ConfigDict

from inferhub.core.audit import Act
from inferhub.core.errors import Forbidden, Invalid, NotFound
from inferhub.core.tenancy import Principal, Project, Role
from inferhub.stores.catalog.base import Catalog

MAX_PAGE = 1000

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Rows of a page.")]
After = Annotated[
    str | None, Query(max_length=100, description="Id of the last row of the page before: `next_after`.")
]


class Body(BaseModel):
    """A request body. A field that is not named in it is refused, so that nothing is set by surprise."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Named(Protocol):
    """Something with an id."""

    @property
    def id(self) -> str: ...


class Owned(Named, Protocol):
    """Something that belongs to a tenant."""

    @property
    def tenant_id(self) -> str: ...


N = TypeVar("N", bound=Named)
O = TypeVar("O", bound=Owned)  # noqa: E741 - an owned object


@dataclass(frozen=True, slots=True)
class Desk:
    """Where admin requests are handled."""

    catalog: Catalog
    refresh: Callable[[], Awaitable[None]]
    """Make this process follow the catalog now, not at its next look."""
    pepper: bytes

    async def project(self, project_id: str, caller: Principal) -> Project:
        """Raises `NotFound`."""
        return find(await self.catalog.projects(), project_id, caller, "project")

    async def home(self, caller: Principal, tenant_id: str | None, project_id: str | None) -> Project:
        """Where a new key or user goes: the project that was named, else the caller's own, and in another
        tenant the oldest. Raises `NotFound` with the parameter to mend."""
        owner = tenant_for(caller, tenant_id)
        projects = [project for project in await self.catalog.projects() if project.tenant_id == owner]
        if not projects:
            raise no_tenant(owner)
        if project_id is None:
            return next((p for p in projects if p.id == caller.project_id), projects[0])
        for project in projects:
            if project.id == project_id:
                return project
        raise NotFound(f"The tenant has no project {project_id[:60]!r}.", param="project_id")


def act(
    request: Request, caller: Principal, action: str, target: str, tenant_id: str | None, **detail: str
) -> Act:
    return Act(caller.key_id, action, target, tenant_id, detail, request.state.request_id)


def keep_private(response: Response) -> None:
    """For answers with a secret. Also tells `idempotency` not to keep them."""
    response.headers["cache-control"] = "no-store"


def find(owned: Iterable[O], wanted: str, caller: Principal, what: str, *, param: str | None = None) -> O:
    """The one with this id. Another tenant's does not exist for the caller, whatever he wants to do to it."""
    for item in owned:
        if item.id == wanted and caller.may_see(item.tenant_id):
            return item
    raise NotFound(f"There is no {what} {wanted[:60]!r}.", param=param)


def tenant_for(caller: Principal, asked: str | None) -> str:
    """Whose object a new one is: the caller's own tenant unless an admin names another one."""
    if asked is None or asked == caller.tenant_id:
        return caller.tenant_id
    if not caller.is_admin:
        raise no_tenant(asked)
    return asked


def no_tenant(asked: str) -> NotFound:
    """The same for a tenant that does not exist and for one that is none of the caller's business."""
    return NotFound(f"There is no tenant {asked[:60]!r}.", param="tenant_id")


def check_granting(
    caller: Principal, what: str, role: Role, scopes: Iterable[str], models: Collection[str] | None = None
) -> None:
    """Nobody gives away, takes over or takes away what he does not have. Raises `Forbidden`."""
    # The role by itself: a key of `admin` sees every tenant, however few scopes it has.
    beyond = [] if role is not Role.ADMIN or caller.is_admin else ["the role 'admin'"]
    beyond += [f"the scope {scope!r}" for scope in sorted(scopes) if not caller.may(scope)]
    if models is None:
        beyond += [] if caller.models is None else ["every model"]
    else:
        beyond += [f"the model {name!r}" for name in sorted(models) if not caller.may_call(name)]
    if beyond:
        raise Forbidden(f"You cannot {what} with more rights than your own: {', '.join(beyond)}.")


def visible(owned: Iterable[O], caller: Principal, tenant_id: str | None) -> list[O]:
    """What the caller sees, of one tenant if he asks for one."""
    if tenant_id is not None:
        tenant_for(caller, tenant_id)
    return [item for item in owned if caller.may_see(item.tenant_id) and tenant_id in (None, item.tenant_id)]


def cut(rows: Sequence[N], after: str | None, limit: int) -> tuple[Sequence[N], bool]:
    """(the rows of one page, whether there are more). Raises `Invalid` for an `after` that is no row."""
    start = 0
    if after is not None:
        start = next((n for n, row in enumerate(rows, 1) if row.id == after), 0)
        if start == 0:
            raise Invalid(f"'after' names no row of this list: {after[:60]!r}.", param="after")
    return rows[start : start + limit], start + limit < len(rows)


def as_page(cards: Sequence[Mapping[str, Any]], has_more: bool) -> Mapping[str, Any]:
    """In the form that OpenAI's lists have."""
    return {
        "object": "list",
        "data": cards,
        "has_more": has_more,
        "next_after": cards[-1]["id"] if has_more else None,
    }


def page(
    rows: Sequence[N], card: Callable[[N], Mapping[str, Any]], after: str | None, limit: int
) -> Mapping[str, Any]:
    """A page of `rows` in their order."""
    shown, has_more = cut(rows, after, limit)
    return as_page([card(row) for row in shown], has_more)
