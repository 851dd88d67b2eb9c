"""What every part of a `hub.yaml` has in common. Used by `types` and `scheduler`, and by nobody else."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, WithJsonSchema

MAX_SECONDS = 86_400
_REFERENCE = {"type": "string", "pattern": r"^(\$\{.*\}|os\.environ/.*)$"}


class Entry(BaseModel):
    """A mapping whose every key is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def count(low: int, high: int) -> WithJsonSchema:
    """A number, or a reference that becomes one: editors must not mark `${SLOTS}` as wrong."""
    return WithJsonSchema({"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, _REFERENCE]})


def number(low: float, high: float) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "number", "minimum": low, "maximum": high}, _REFERENCE]})


def no_flag(value: Any) -> Any:
    """`true` is a number to pydantic, and a slip here."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value
