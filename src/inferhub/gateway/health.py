"""`/livez`, `/readyz`, `/healthz`, `/version`: no key, no dependency, no model is ever called.

The operations port answers the same from a thread of its own, even when this loop is blocked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from inferhub import __version__


def health_router(readiness: Callable[[], Mapping[str, object]]) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.api_route("/livez", methods=["GET", "HEAD"], summary="Is the process alive?")
    async def livez() -> Mapping[str, str]:
        return {"status": "ok"}

    async def readyz(verbose: str | None = None) -> Response:
        """503 until every model is ready, and again while draining. `?verbose` says which is missing."""
        state = readiness()
        body = state if verbose is not None else {"ready": state["ready"]}
        return JSONResponse(body, 200 if state["ready"] else 503)

    router.add_api_route("/readyz", readyz, methods=["GET", "HEAD"], summary="Can it serve?")
    router.add_api_route("/healthz", readyz, methods=["GET", "HEAD"], summary="The same as /readyz")

    @router.get("/version", summary="Which InferHub is this?")
    async def version() -> Mapping[str, str]:
        return {"version": __version__}

    return router
