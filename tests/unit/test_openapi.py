"""The API document and its page agree with the server, and with each other."""

from __future__ import annotations

from importlib.resources import files

import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from inferhub.gateway.health import health_router
from inferhub.gateway.openapi import add_docs
from inferhub.modalities import modalities
from inferhub.modalities.base import Modality


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


@pytest.mark.parametrize("modality", modalities().values(), ids=lambda m: m.name)
def test_examples_are_valid_and_errors_are_listed(document: dict, modality: Modality) -> None:  # type: ignore[type-arg]
    operation = document["paths"][modality.path]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    schema = {**body["schema"], "components": document["components"]}
    Draft202012Validator(schema).validate(body["example"])
    assert {"200", "400", "401", "404", "413", "429", "503"} <= set(operation["responses"])
    assert "422" not in operation["responses"]


def test_health_needs_no_key_and_everything_else_does(document: dict) -> None:  # type: ignore[type-arg]
    assert document["security"]
    assert document["paths"]["/livez"]["get"]["security"] == []
    assert "security" not in document["paths"]["/v1/chat/completions"]["post"]
