"""The shape of a `hub.yaml`, as parsed: every key, its limits and its help, once.

The loader validates with it; the JSON Schema for editors and the reference page are made from it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

MAX_ENTRIES = 1000

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9@][A-Za-z0-9._:/@-]{0,127}$")]
NAME_HELP = "1 to 128 letters, digits or `. _ : / @ -`, the first a letter, a digit or `@`"


def _count(low: int, high: int) -> WithJsonSchema:
    """A number, or a reference that becomes one: editors must not mark `${SLOTS}` as wrong."""
    reference = {"type": "string", "pattern": r"^(\$\{.*\}|os\.environ/.*)$"}
    return WithJsonSchema({"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, reference]})


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ModelEntry(_Entry):
    """One model to serve."""

    name: Name = Field(description=f"What clients ask for: {NAME_HELP}.")
    backend: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Engine or kind of upstream. May be left out where it is plain: weights that end "
        "in `.gguf` mean `llamacpp`, an option `base_url` means `openai_compatible`.",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Name from the weights index, or a path on the worker; none for remote models.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda:[0-9]{1,3})$",
        description="Where it runs: `auto`, `cpu` or `cuda:N`.",
    )
    slots: Annotated[int, Field(ge=0, le=4096), _count(0, 4096)] = Field(
        0,
        description="How many calls run at once; more wait in the queue. 0 leaves the number to the "
        "backend: 4 for engines, 256 for remote models.",
    )
    queue_limit: Annotated[int, Field(ge=0, le=100_000), _count(0, 100_000)] = Field(
        64, description="How many calls may wait; more are refused with 503."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="The backend's own settings."
    )


class RouteEntry(_Entry):
    """A further public name of a model."""

    name: Name = Field(description=f"What clients ask for: {NAME_HELP}.")
    model: Name = Field(description="Name of the model that answers.")


class SpecFile(_Entry):
    """Models and routes of an InferHub installation (`hub.yaml`)."""

    models: tuple[ModelEntry, ...] = Field(max_length=MAX_ENTRIES, description="The models to serve.")
    routes: tuple[RouteEntry, ...] = Field((), max_length=MAX_ENTRIES, description="Further public names.")


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of `hub.yaml`, for editors; published in `docs/reference`."""
    schema = SpecFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "InferHub hub.yaml"}
