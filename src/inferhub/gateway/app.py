"""Puts the gateway together from its parts: hot routes in front, the FastAPI application behind.

Called by assembly, which owns every part; this module opens nothing and starts nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from inferhub import __version__
from inferhub.core.call import Handler
from inferhub.core.errors import InferHubError, InternalError, Invalid, MethodNotAllowed, NotFound, TooLarge
from inferhub.gateway.admin.spec import spec_router
from inferhub.gateway.admin.workers import workers_router
from inferhub.gateway.desired import Desired
from inferhub.gateway.door import Door
from inferhub.gateway.fleet import Fleet
from inferhub.gateway.health import health_router
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.models import models_router
from inferhub.gateway.openapi import add_docs
from inferhub.gateway.problems import envelope, error_headers
from inferhub.gateway.surface import InferenceEndpoint
from inferhub.modalities import modalities
from inferhub.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GatewayParts:
    pipeline: Handler
    fleet: Fleet
    desired: Desired
    metrics: Metrics
    limits: GatewayLimits
    cors_origins: Sequence[str] = ()


def build_app(parts: GatewayParts) -> ASGIApp:
    """The whole HTTP surface as one ASGI application."""
    hot: dict[str, InferenceEndpoint] = {}
    for modality in modalities().values():
        endpoint = InferenceEndpoint(modality, parts.pipeline, parts.desired.identity)
        # With and without the trailing slash, and for a base URL that forgot `/v1`.
        for path in (modality.path, modality.path.removeprefix("/v1")):
            hot[path] = hot[f"{path}/"] = endpoint
    app: ASGIApp = Door(hot, _cold_app(parts), parts.limits, parts.metrics)
    if parts.cors_origins:
        app = CORSMiddleware(
            app, allow_origins=parts.cors_origins, allow_methods=["GET", "POST", "PUT"], allow_headers=["*"]
        )
    return app


def _cold_app(parts: GatewayParts) -> FastAPI:
    app = FastAPI(
        title="InferHub", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.identity = parts.desired.identity
    app.include_router(health_router(parts.fleet.readiness))
    app.include_router(models_router(parts.fleet.directory))
    app.include_router(spec_router(parts.desired))
    app.include_router(workers_router(parts.fleet.workers))
    add_docs(app)
    app.add_exception_handler(InferHubError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(Exception, _answer_bug)
    return app


async def _answer_error(request: Request, error: Any) -> Response:
    headers = {name.decode(): value.decode("latin-1") for name, value in error_headers(error)}
    return Response(envelope(error), error.http, headers, "application/json")


async def _answer_http(request: Request, error: Any) -> Response:
    """Starlette's own refusals: no such route, wrong method."""
    path = request.scope["path"][:200]
    known: dict[int, InferHubError] = {
        404: NotFound(f"Nothing lives at {path}. See /docs."),
        405: MethodNotAllowed(f"{request.method} is not answered at {path}."),
        413: TooLarge(),
    }
    answer = await _answer_error(request, known.get(error.status_code, Invalid(str(error.detail))))
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


async def _answer_validation(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    param = ".".join(str(step) for step in first["loc"][1:])
    return await _answer_error(request, Invalid(f"Invalid value for '{param}': {first['msg']}.", param=param))


async def _answer_bug(request: Request, error: Exception) -> Response:
    _log.error("request failed unexpectedly", exc_info=error, extra={"request_id": request.state.request_id})
    return await _answer_error(request, InternalError())
