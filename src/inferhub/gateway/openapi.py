"""The API document and its page: FastAPI's own for the cold routes, the modality records for the hot ones.

The page's scripts and styles are served from here, so it works offline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from inferhub import __version__
from inferhub.core.errors import InferHubError
from inferhub.modalities import modalities
from inferhub.modalities.base import Modality

_ASSETS = "/docs/assets"


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """Every error under `/v1`."""

    error: ErrorDetail


def add_docs(app: FastAPI) -> None:
    app.mount(_ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="InferHub API",
            # The version keeps browsers from showing a new document with an old script.
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js?{__version__}",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css?{__version__}",
            swagger_favicon_url=f"{_ASSETS}/favicon.png",
        )

    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(_document(app))
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> Mapping[str, Any]:
    base = get_openapi(title="InferHub", version=__version__, routes=app.routes)
    types = [t for m in modalities().values() for t in (m.request, m.response)]
    _, components = msgspec.json.schema_components(
        [*types, ErrorBody], ref_template="#/components/schemas/{name}"
    )
    schemas = base.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components)
    base["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    base["security"] = [{"key": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operation in (operation for path in base["paths"].values() for operation in path.values()):
        # Bad parameters are 400 in our own form, and health needs no key.
        operation["responses"].pop("422", None)
        if "health" in operation["tags"]:
            operation["security"] = []
    hot = {modality.path: {"post": _operation(modality)} for modality in modalities().values()}
    base["paths"] = {**hot, **base["paths"]}
    return base


def _operation(modality: Modality) -> Mapping[str, Any]:
    answers: dict[str, Any] = {
        "200": {
            "description": "The answer",
            "content": {"application/json": {"schema": _ref(modality.response)}},
        }
    }
    if modality.writer is not None:
        answers["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    for status, classes in sorted(_error_classes().items()):
        answers[str(status)] = {
            "description": "; ".join(classes),
            "content": {"application/json": {"schema": _ref(ErrorBody)}},
        }
    example = {"model": "MODEL", **modality.example}
    return {
        "tags": ["inference"],
        "summary": modality.summary,
        "operationId": modality.name,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(modality.request), "example": example}},
        },
        "responses": answers,
    }


def _ref(struct: type[msgspec.Struct]) -> Mapping[str, str]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}


def _error_classes() -> Mapping[int, list[str]]:
    found: dict[int, list[str]] = {}
    pending: list[type[InferHubError]] = [InferHubError]
    while pending:
        for child in pending.pop().__subclasses__():
            pending.append(child)
            if not child.__subclasses__():
                found.setdefault(child.http, []).append(f"`{child.code}`: {child().message}")
    return found
