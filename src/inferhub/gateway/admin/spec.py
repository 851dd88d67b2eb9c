"""`/admin/v1/spec`: what the platform should be. Checked whole, swapped in one step, or left as it was."""

from __future__ import annotations

import re
from typing import Annotated, Protocol

from fastapi import APIRouter, Header, Request, Response

from inferhub.core.audit import Act
from inferhub.core.errors import Invalid, TooLarge
from inferhub.gateway.access import Caller, GuardedRoute
from inferhub.gateway.desired import AppliedSpec

_MAX_SPEC_BYTES = 1024 * 1024
_REVISION = re.compile(r'"?([0-9]{1,15})"?')


class SpecDesk(Protocol):
    """What this router needs; `Desired` is it."""

    @property
    def spec(self) -> AppliedSpec: ...

    async def apply(self, text: str, expected_revision: int | None, act: Act) -> AppliedSpec: ...


def spec_router(desk: SpecDesk) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/admin/v1", tags=["admin"])

    @router.get("/spec", summary="The spec in force", response_class=Response)
    async def get_spec() -> Response:
        return _as_yaml(desk.spec)

    @router.put("/spec", summary="Apply a hub.yaml", response_class=Response)
    async def put_spec(
        request: Request,
        caller: Caller,
        if_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        text = await _read_text(request)
        expected = None if if_match is None else _revision(if_match)
        act = Act(caller.key_id, "spec.apply", "spec", request_id=request.state.request_id)
        return _as_yaml(await desk.apply(text, expected, act))

    return router


def _revision(if_match: str) -> int:
    match = _REVISION.fullmatch(if_match)
    if match is None:
        raise Invalid(f"If-Match is {if_match[:40]!r}; send the revision number.", param="If-Match")
    return int(match[1])


async def _read_text(request: Request) -> str:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_SPEC_BYTES:
            raise TooLarge(f"A spec may have at most {_MAX_SPEC_BYTES} bytes.")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Invalid("The spec is not valid UTF-8.") from error


def _as_yaml(spec: AppliedSpec) -> Response:
    return Response(spec.text, media_type="application/yaml", headers={"etag": f'"{spec.revision}"'})
