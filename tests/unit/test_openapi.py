"""The API document and its page agree with the server, and with each other."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import msgspec
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from inferhub.core.errors import ModelNotFound
from inferhub.gateway.dialects import dialects
from inferhub.gateway.dialects.base import Dialect
from inferhub.gateway.health import health_router
from inferhub.gateway.openapi import add_docs
from inferhub.gateway.payload import FORM
from inferhub.gateway.problems import form_at
from inferhub.modalities.base import JSON


@pytest.fixture
def document() -> dict:  # type: ignore[type-arg]
    app = FastAPI()
    app.include_router(health_router(dict))
    add_docs(app)
    return app.openapi()


def test_the_page_can_render_the_version_of_the_document(document: dict) -> None:  # type: ignore[type-arg]
    assert document["openapi"].startswith("3.1.")
    script = (files("fastapi_offline") / "static" / "swagger-ui-bundle.js").read_text()
    # The expression by which the page recognises documents of this version.
    assert r"^3\.1\." in script


@pytest.mark.parametrize("dialect", dialects().values(), ids=lambda d: d.name)
def test_every_dialect_is_described_with_a_valid_example_and_its_errors(
    document: dict,  # type: ignore[type-arg]
    dialect: Dialect,
) -> None:
    operation = document["paths"][dialect.path]["post"]
    bodies = operation["requestBody"]["content"]
    assert (FORM in bodies) == bool(dialect.files)
    needed = {
        name: "bytes" if field.most == 1 else ["bytes"]
        for name, field in dialect.files.items()
        if field.required
    }
    # A file that has to be there can only come in a form, which is described without an example.
    assert (JSON in bodies) == (not needed)
    example = bodies[JSON]["example"] if not needed else {"model": "MODEL", **dialect.example}
    schema = {**bodies[FORM if needed else JSON]["schema"], "components": document["components"]}
    Draft202012Validator(schema).validate(example | needed)
    # The server reads the example too, and finds nothing to refuse.
    dialect.check(msgspec.convert(example, dialect.request))
    overloaded = "529" if dialect.path.startswith("/v1/messages") else "503"
    assert {"200", "400", "401", "404", "413", "429", overloaded} <= set(operation["responses"])
    assert "422" not in operation["responses"]
    streams = "text/event-stream" in operation["responses"]["200"]["content"]
    assert streams == (dialect.writer is not None)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_errors_are_described_as_they_are_sent(document: dict, path: str) -> None:  # type: ignore[type-arg]
    form = form_at(path)
    error = ModelNotFound()
    answer = document["paths"][path]["post"]["responses"][str(form.status(error))]
    schema = {**answer["content"]["application/json"]["schema"], "components": document["components"]}
    Draft202012Validator(schema).validate(json.loads(form.body(error, "req_1")))
    assert f"`{error.code}`" in answer["description"]


def test_every_reference_leads_to_a_schema_and_no_schema_has_a_module_in_its_name(document: dict) -> None:  # type: ignore[type-arg]
    schemas = document["components"]["schemas"]
    refs = re.findall(r"#/components/schemas/([^\"]+)", json.dumps(document))
    assert refs
    assert set(refs) <= set(schemas)
    assert not [name for name in schemas if "." in name]


def test_health_needs_no_key_and_everything_else_does(document: dict) -> None:  # type: ignore[type-arg]
    assert document["security"]
    assert document["paths"]["/livez"]["get"]["security"] == []
    assert "security" not in document["paths"]["/v1/chat/completions"]["post"]
