"""Checks requests and replies by what vendors publish, never by InferHub's own types.

Called by strict upstreams (requests) and by tests (replies). OpenAI's document is in `data`, see
`openai_document`; the other rules are the types of the vendors' SDKs. Every check lists what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from inferhub.testing.openai_document import SCHEMAS_FILE

_MESSAGE_CHARS = 300


def validate(schema: str, instance: Any) -> list[str]:
    """Where `instance` breaks a schema of OpenAI's document, by the schema's name there."""
    return [_told(error) for error in _validator(schema).iter_errors(instance)]


def validate_request(schema: str, body: bytes) -> list[str]:
    """As `validate`; besides, `body` must be JSON and have no field that the document does not know.

    The document allows unknown fields, but OpenAI's servers refuse them.
    """
    try:
        request = json.loads(body, parse_constant=_refuse_constant)
    except ValueError as error:
        return [f"not JSON: {error}"]
    if not isinstance(request, dict):
        return ["not an object"]
    unknown = sorted(request.keys() - set(_fields(schema)))
    return validate(schema, request) + [f"unknown field {name!r}" for name in unknown]


def validate_type(kind: Any, instance: Any) -> list[str]:
    """Where `instance` (decoded JSON) breaks a type of a vendor's SDK: a model, a TypedDict, a union."""
    from pydantic import ValidationError as TypeErrors

    try:
        _exhaust(_adapter(kind).validate_python(instance))
    except TypeErrors as errors:
        return [
            f"{'.'.join(str(step) for step in e['loc'])}: {e['msg']}"[:_MESSAGE_CHARS]
            for e in errors.errors(include_url=False, include_context=False, include_input=False)
        ]
    return []


def _exhaust(value: Any) -> None:
    """SDKs type lists as `Iterable`, which pydantic checks only while somebody iterates."""
    if isinstance(value, Mapping):
        for inner in value.values():
            _exhaust(inner)
    elif isinstance(value, Iterator | list | tuple):
        for inner in value:
            _exhaust(inner)


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _told(error: ValidationError) -> str:
    # Of a choice between schemas, the error of the one that nearly fits says more than "none fits".
    while error.context and (deeper := best_match(error.context)) is not None:
        error = deeper
    path = ".".join(str(step) for step in error.absolute_path) or "(top)"
    return f"{path}: {error.message}"[:_MESSAGE_CHARS]


@cache
def _schemas() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(SCHEMAS_FILE.read_text(encoding="utf-8"))
    return dict(document["schemas"])


@cache
def _validator(schema: str) -> Draft202012Validator:
    schemas = _schemas()
    return Draft202012Validator({**schemas[schema], "components": {"schemas": schemas}})


@cache
def _fields(schema: str) -> tuple[str, ...]:
    return tuple(_fields_of(_schemas()[schema]))


def _fields_of(schema: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        yield from _fields_of(_schemas()[schema["$ref"].rpartition("/")[2]])
    yield from schema.get("properties", ())
    for part in (*schema.get("allOf", ()), *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _fields_of(part)
