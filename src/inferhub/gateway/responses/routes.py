"""`/v1/responses/{id}`: read a stored response and its input, delete it. Behind the door, like `models`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Response

from inferhub.core.errors import Invalid, Unsupported
from inferhub.gateway.access import Caller, GuardedRoute
from inferhub.gateway.responses.kept import KeptResponses, owner_of


def responses_router(kept: KeptResponses) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/v1/responses", tags=["responses"])

    @router.get("/{response_id}", summary="Read a stored response")
    async def get_response(response_id: str, caller: Caller, stream: bool = False) -> Response:
        if stream:
            raise Unsupported(
                "A stored response is not streamed again; leave 'stream' out to get it whole.", param="stream"
            )
        record = await kept.find(owner_of(caller), response_id)
        return Response(bytes(record.response), media_type="application/json")

    @router.delete("/{response_id}", summary="Delete a stored response")
    async def delete_response(response_id: str, caller: Caller) -> dict[str, Any]:
        await kept.delete(owner_of(caller), response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.post("/{response_id}/cancel", summary="Cancel a response that runs in the background")
    async def cancel_response(response_id: str, caller: Caller) -> Response:
        await kept.find(owner_of(caller), response_id)
        raise Invalid(
            "Only a response made with 'background' can be cancelled, and none is made here; to stop an "
            "answer, close its connection.",
            param="response_id",
        )

    @router.get("/{response_id}/input_items", summary="List the input of a stored response")
    async def list_input_items(
        response_id: str,
        caller: Caller,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        record = await kept.find(owner_of(caller), response_id)
        page = _page(record.input, limit, order, after)
        return Response(msgspec.json.encode(page), media_type="application/json")

    return router


def _page(
    items: list[dict[str, Any]], limit: int, order: Literal["asc", "desc"], after: str | None
) -> dict[str, Any]:
    """Raises `Invalid` for an `after` that is none of them."""
    ordered = items if order == "asc" else items[::-1]
    if after is not None:
        places = [place for place, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise Invalid(
                f"'after' is {after[:80]!r}, which is no input item of this response.", param="after"
            )
        ordered = ordered[places[0] + 1 :]
    data = ordered[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": len(ordered) > limit,
    }
