"""Refuses JSON schemas that the engine's grammar would only half follow.

llama.cpp drops keywords it does not know with a line in its log; the answer would then not validate.
Called by `chat` for `response_format`; tool parameters are only promised to be JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from inferhub.core.errors import Invalid

_ANNOTATIONS = frozenset({
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples",
    "deprecated", "readOnly", "writeOnly", "format", "contentEncoding", "contentMediaType",
})  # fmt: skip
_ENFORCED = frozenset({
    "type", "enum", "const", "$ref", "anyOf", "oneOf", "properties", "required", "additionalProperties",
    "items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
})  # fmt: skip
_ALONE = ("$ref", "anyOf", "oneOf", "const", "enum")
"""The engine looks no further once it has found one of these."""
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_MAX_REPETITIONS = 2000
"""The engine's own limit for `minItems`, `minLength` and the counts of a pattern."""
_GRAMMAR_FORMATS = frozenset({"date", "time", "date-time", "uuid"})
"""Formats that the engine turns into a grammar; all others are annotations, as the standard has it."""
_CLASS = re.compile(r"\[(?:\\.|[^\]\\])*\]")
_HARD = re.compile(r"\\[A-Za-z0-9]|\(\?|\.|\^|\$|\"|\\\\")
"""Outside classes: what the engine gives up on, or what would break out of the JSON text."""


def check_enforceable(schema: dict[str, Any], param: str) -> None:
    """Raise `Invalid` naming the place and the keyword that the engine cannot enforce."""
    stack: list[tuple[Any, str]] = [(schema, "schema")]
    while stack:
        node, where = stack.pop()
        if isinstance(node, bool):
            raise _refused(param, where, f"{node} is not a schema that the engine can follow")
        for problem in _problems(node):
            raise _refused(param, where, problem)
        stack += _children(node, where)


def _refused(param: str, where: str, problem: str) -> Invalid:
    return Invalid(f"'{param}': at {where}, {problem}.", param=param, code="unsupported_json_schema")


def _problems(node: dict[str, Any]) -> Iterator[str]:
    unknown = sorted(node.keys() - _ANNOTATIONS - _ENFORCED)
    if unknown:
        yield f"{unknown[0]!r} cannot be enforced; this engine enforces {', '.join(sorted(_ENFORCED))}"
    constraints = node.keys() & _ENFORCED
    for keyword in _ALONE:
        beside = sorted(constraints - {keyword, "type"})
        if keyword in node and beside:
            yield f"{beside[0]!r} beside {keyword!r} cannot be enforced; move it into the alternatives"
    if _BOUNDS & constraints and "number" in (_types(node) or {"number"}):
        yield f"{min(_BOUNDS & constraints)!r} can only be enforced for 'type': 'integer'"
    missing = sorted(set(node.get("required", ())) - node.get("properties", {}).keys())
    if missing:
        yield f"'required' names {missing[0]!r}, which is not in 'properties'"
    if "prefixItems" in node and constraints & {"items", "minItems", "maxItems"}:
        yield "'items', 'minItems' and 'maxItems' cannot be enforced beside 'prefixItems'"
    yield from _text_problems(node)


def _text_problems(node: dict[str, Any]) -> Iterator[str]:
    for keyword in ("minItems", "minLength"):
        if node.get(keyword, 0) > _MAX_REPETITIONS:
            yield f"{keyword!r} is {node[keyword]}; at most {_MAX_REPETITIONS} can be enforced"
    has_form = "pattern" in node or node.get("format") in _GRAMMAR_FORMATS
    if has_form and node.keys() & {"minLength", "maxLength"}:
        yield "a length beside 'pattern' or 'format' cannot be enforced; put it into the pattern"
    if "pattern" in node:
        yield from _pattern_problems(node["pattern"])
    wrong = [v for v in _values(node) if _types(node) and not _types(node) & _kinds(v)]
    if wrong:
        yield f"{wrong[0]!r} is not of the given 'type'"


def _pattern_problems(pattern: str) -> Iterator[str]:
    if not (pattern.startswith("^") and pattern.endswith("$")):
        yield f"the pattern {pattern!r} must begin with '^' and end with '$' to be enforced"
        return
    try:
        re.compile(pattern)
        opens_text = any(re.fullmatch(found, c) for found in _CLASS.findall(pattern) for c in '"\\\n')
    except re.error as error:
        yield f"the pattern {pattern!r} is not valid: {error}"
        return
    if opens_text or _HARD.search(_unescaped(_CLASS.sub("", pattern[1:-1]))):
        yield (
            f"the pattern {pattern!r} is beyond the engine: it reads text, classes such as '[0-9]' "
            f"(not '\\d', '.' or '[^a]'), plain groups, '|' and repetitions"
        )


def _unescaped(pattern: str) -> str:
    """Without escaped punctuation, which is harmless except for quotes and the backslash itself."""
    return re.sub(r"\\[^A-Za-z0-9\"\\]", "", pattern)


def _types(node: dict[str, Any]) -> set[str]:
    found = node.get("type", ())
    return {found} if isinstance(found, str) else set(found)


def _values(node: dict[str, Any]) -> list[Any]:
    return [node["const"]] if "const" in node else list(node.get("enum", ()))


def _kinds(value: Any) -> set[str]:
    """The names that JSON Schema has for the type of a value."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names = {str: "string", float: "number", list: "array", dict: "object", type(None): "null"}
    return {names[type(value)]}


def _children(node: dict[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    for keyword in ("properties", "$defs", "definitions"):
        for name, child in node.get(keyword, {}).items():
            yield child, f"{where}.{keyword}.{name}"
    for keyword in ("anyOf", "oneOf", "prefixItems"):
        for position, child in enumerate(node.get(keyword, ())):
            yield child, f"{where}.{keyword}[{position}]"
    if "items" in node:
        yield node["items"], f"{where}.items"
    if isinstance(node.get("additionalProperties"), dict):
        yield node["additionalProperties"], f"{where}.additionalProperties"
