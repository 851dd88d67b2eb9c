"""Checks JSON Schemas that clients send, before an engine compiles one into a grammar."""

from __future__ import annotations

from typing import Any

from inferhub.core.errors import Invalid


def check_json_schema(schema: dict[str, Any], param: str) -> None:
    """Raise `Invalid` naming `param` unless `schema` is a valid JSON Schema (draft 2020-12)."""
    if not schema:
        return
    # Imported here: it takes 0.1 s and most calls carry no schema.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        path = "".join(f"[{step!r}]" for step in error.absolute_path)
        raise Invalid(
            f"'{param}{path}' is not valid JSON Schema: {error.message}",
            param=param,
            code="invalid_json_schema",
        ) from error
