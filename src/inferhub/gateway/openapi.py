"""The API document and its page: FastAPI's own for the cold routes, the dialect records for the hot ones.

The page's scripts and styles are served from here, so it works offline.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from inferhub import __version__
from inferhub.core.errors import InternalError, LimitReached, RequestError, ServingError, family
from inferhub.gateway.dialects import dialects
from inferhub.gateway.dialects.base import Dialect
from inferhub.gateway.infer import InferRequest
from inferhub.gateway.payload import FORM
from inferhub.gateway.problems import ANTHROPIC, OPENAI, Form, form_at
from inferhub.modalities.base import JSON

_ASSETS = "/docs/assets"
_GROUPS = {RequestError, LimitReached, ServingError}
"""Of the error tree, what is a heading and never raised itself."""

_Refs = Mapping[type[msgspec.Struct], Mapping[str, Any]]
"""Each described type → the reference to its schema."""


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
    types = list(dict.fromkeys(t for d in dialects().values() for t in (d.request, d.response)))
    types += [InferRequest, OPENAI.envelope, ANTHROPIC.envelope]
    # Types of one name get longer ones, so a reference is looked up and never put together.
    found, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs = dict(zip(types, found, strict=True))
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
    hot = {dialect.path: {"post": _operation(dialect, refs)} for dialect in dialects().values()}
    hot["/infer"] = {"post": _infer(refs)}
    base["paths"] = {**hot, **base["paths"]}
    return base


def _operation(dialect: Dialect, refs: _Refs) -> Mapping[str, Any]:
    form = form_at(dialect.path)
    answers: dict[str, Any] = {"200": {"description": "The answer", "content": _answer(dialect, refs)}}
    for status, errors in sorted(_errors(form).items()):
        answers[str(status)] = {
            "description": "; ".join(errors),
            "content": {"application/json": {"schema": refs[form.envelope]}},
        }
    return {
        "tags": ["inference"],
        "summary": dialect.summary,
        "operationId": dialect.name,
        "requestBody": {"required": True, "content": _bodies(dialect, refs)},
        "responses": answers,
    }


def _bodies(dialect: Dialect, refs: _Refs) -> Mapping[str, Any]:
    """A form where there are files, JSON where there need not be any."""
    bodies: dict[str, Any] = {}
    if not any(field.required for field in dialect.files.values()):
        example = {"model": "MODEL", **dialect.example}
        bodies[JSON] = {"schema": refs[dialect.request], "example": example}
    if dialect.files:
        binary = {"type": "string", "format": "binary"}
        files = {
            name: binary if field.most == 1 else {"type": "array", "items": binary}
            for name, field in dialect.files.items()
        }
        needed = [name for name, field in dialect.files.items() if field.required]
        form = {"type": "object", "properties": files, "required": needed}
        bodies[FORM] = {"schema": {"allOf": [refs[dialect.request], form]}}
    return bodies


def _answer(dialect: Dialect, refs: _Refs) -> Mapping[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": refs[dialect.response]}}
    if dialect.media_type is not None:
        # Which one depends on the request, and there may be JSON among them.
        content["*/*"] = {"schema": {"type": "string", "format": "binary"}}
    if dialect.writer is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return content


def _infer(refs: _Refs) -> Mapping[str, Any]:
    return {
        "tags": ["inference"],
        "summary": "Any task at one address; the answer is that of the task's own address",
        "operationId": "infer",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": refs[InferRequest], "example": {"input": "Hello"}}},
        },
        "responses": {"200": {"description": "The answer"}},
    }


def _errors(form: Form) -> Mapping[int, list[str]]:
    """What may go wrong with a call, by the status that clients of this form see."""
    found: dict[int, list[str]] = {}
    for kind in chain(family(RequestError), family(ServingError), family(InternalError)):
        if kind not in _GROUPS:
            error = kind()
            found.setdefault(form.status(error), []).append(f"`{kind.code}`: {error.message}")
    return found
