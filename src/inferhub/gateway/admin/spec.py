"""`/admin/v1/spec`: what the platform should be. Checked whole, swapped in one step, or left as it was."""

from __future__ import annotations

from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, Header, Request, Response

from inferhub.core.errors import Invalid, TooLarge
from inferhub.gateway.dependencies import admin_caller
from inferhub.gateway.desired import AppliedSpec

_MAX_SPEC_BYTES = 1024 * 1024


class SpecDesk(Protocol):
    """What this router needs; `Desired` is it."""

    @property
    def spec(self) -> AppliedSpec: ...

    async def apply(self, text: str, expected_revision: int | None) -> AppliedSpec: ...


def spec_router(desk: SpecDesk) -> APIRouter:
    router = APIRouter(prefix="/admin/v1", tags=["admin"], dependencies=[Depends(admin_caller)])

    @router.get("/spec", summary="The spec in force", response_class=Response)
    async def get_spec() -> Response:
        return _as_yaml(desk.spec)

    @router.put("/spec", summary="Apply a hub.yaml", response_class=Response)
    async def put_spec(request: Request, if_match: Annotated[str | None, Header()] = None) -> Response:
        text = await _read_text(request)
        if if_match is not None and not if_match.strip('"').isdigit():
            raise Invalid(f"If-Match is {if_match!r}; send the revision number.", param="If-Match")
        expected = int(if_match.strip('"')) if if_match is not None else None
        return _as_yaml(await desk.apply(text, expected))

    return router


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
