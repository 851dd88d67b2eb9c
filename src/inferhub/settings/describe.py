"""Says in words what a setting allows and what its default is. Pure; for errors, `--help` and the docs."""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from inferhub.settings.model import Settings

_LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern", "json_schema_extra")


def allowed_values(name: str) -> str:
    """For example `a whole number from 0 to 65535`."""
    field = Settings.model_fields[name]
    return _kind(field.annotation, _limits(field))


def default_text(name: str) -> str:
    """The default as the reference shows it; a sentence where it depends on the machine."""
    field = Settings.model_fields[name]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default_text" in extra:
        return str(extra["default_text"])
    value = field.get_default()
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _limits(field: FieldInfo) -> dict[str, Any]:
    """The constraints of a field, those inside `Annotated` and inside a union included."""
    found: dict[str, Any] = {}
    for item in [*field.metadata, *_nested(field.annotation)]:
        for source in [item, *getattr(item, "metadata", ())]:
            for key in _LIMITS:
                value = getattr(source, key, None)
                if value is not None:
                    found[key] = value
    return found


def _nested(annotation: Any) -> list[Any]:
    found = list(getattr(annotation, "__metadata__", ()))
    for argument in get_args(annotation):
        found += _nested(argument)
    return found


def _kind(annotation: Any, limits: dict[str, Any]) -> str:
    if hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return _kind(next(a for a in get_args(annotation) if a is not NoneType), limits)
    if origin is Literal:
        return ", ".join(get_args(annotation))
    extra = limits.get("json_schema_extra")
    text = extra.get("allowed", "text") if isinstance(extra, dict) else "text"
    if origin is tuple:
        return f"a list of {text}, separated by commas where it is text"
    if annotation is str and "pattern" in limits:
        return f"text that matches {limits['pattern']}"
    words = {
        bool: "true or false",
        int: f"a whole number {_range(limits)}",
        float: f"a number {_range(limits)}",
        Path: "a path",
        SecretStr: f"text of {limits.get('min_length', 0)} to {limits.get('max_length', 0)} characters",
    }
    return words.get(annotation, text)


def _range(limits: dict[str, Any]) -> str:
    low = f"above {limits['gt']}" if "gt" in limits else f"from {limits.get('ge')}"
    high = limits.get("le")
    return f"{low} up to {high}" if "gt" in limits else f"{low} to {high}"
