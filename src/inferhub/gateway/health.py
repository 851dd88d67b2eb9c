"""`/livez`, `/readyz`, `/healthz`, `/version`: no key, no dependency, no model is ever called.

The operations port answers the same from a thread of its own, even when this loop is blocked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from inferhub import __version__
from inferhub.gateway.access import GuardedRoute


def health_router(readiness: Callable[[], Mapping[str, object]]) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, tags=["health"])

    async def livez() -> Mapping[str, str]:
        return {"status": "ok"}

    async def readyz(verbose: str | None = None) -> Response:
        """503 until every model is ready, and again while draining. `?verbose` says which is missing."""
        state = readiness()
        body = state if verbose is not None else {"ready": state["ready"]}
        return JSONResponse(body, 200 if state["ready"] else 503)

    async def version() -> Mapping[str, str]:
        return {"version": __version__}

    def answer(path: str, endpoint: Callable[..., object], summary: str) -> None:
        router.add_api_route(path, endpoint, methods=["GET"], summary=summary)
        # Some probes only send HEAD; in the API document it would be a second operation of one name.
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)

    answer("/livez", livez, "Is the process alive?")
    answer("/readyz", readyz, "Can it serve?")
    answer("/healthz", readyz, "The same as /readyz")
    answer("/version", version, "Which InferHub is this?")
    return router
