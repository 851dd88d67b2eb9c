"""Tool calls as the scripted upstream says them in OpenAI's dialect: right, or wrong as seen in the field.

Read by `upstream_dialects.openai`. What a client must get in spite of `bad_tools` is always the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from inferhub.testing.upstream_script import Script, tool_calls

Delta = dict[str, Any]


def tool_calls_of(script: Script) -> list[dict[str, Any]]:
    """The calls of a whole answer."""
    return [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": _arguments(given)}}
        for call_id, name, given in tool_calls(script)
    ]


def tool_deltas(script: Script) -> list[Delta]:
    """The deltas of a stream; each carries one piece of one call."""
    deltas: list[Delta] = []
    for index, (call_id, name, given) in enumerate(tool_calls(script)):
        opening = {"index": index, "id": call_id, "type": "function"}
        deltas.append({**opening, "function": {"name": name, "arguments": ""}})
        deltas += [{"index": index, "function": {"arguments": piece}} for piece in _arguments(given)]
    spoiled = BAD_TOOLS[script.bad_tools](deltas) if script.bad_tools else deltas
    return [{"tool_calls": [delta]} for delta in spoiled]


def _arguments(given: Mapping[str, Any]) -> str:
    return msgspec.json.encode(given).decode()


def _without(key: str) -> Callable[[list[Delta]], list[Delta]]:
    return lambda deltas: [{k: v for k, v in delta.items() if k != key} for delta in deltas]


def _with_id(make: Callable[[str], str]) -> Callable[[list[Delta]], list[Delta]]:
    return lambda deltas: [{**d, "id": make(d["id"])} if "id" in d else d for d in deltas]


def _same_index(deltas: list[Delta]) -> list[Delta]:
    return [{**delta, "index": 0} for delta in deltas]


def _id_repeated(deltas: list[Delta]) -> list[Delta]:
    return [{**delta, "id": f"call_{delta['index']}"} for delta in deltas]


def _from_one(deltas: list[Delta]) -> list[Delta]:
    return [{**delta, "index": delta["index"] + 1} for delta in deltas]


def _late_name(deltas: list[Delta]) -> list[Delta]:
    """The name of each call arrives with the last piece of its arguments."""
    names = {d["index"]: d["function"]["name"] for d in deltas if "name" in d["function"]}
    last = {delta["index"]: position for position, delta in enumerate(deltas)}
    late = []
    for position, delta in enumerate(deltas):
        function = {"arguments": delta["function"]["arguments"]}
        if last[delta["index"]] == position:
            function["name"] = names[delta["index"]]
        late.append({**delta, "function": function})
    return late


def _name_repeated(deltas: list[Delta]) -> list[Delta]:
    names = {d["index"]: d["function"]["name"] for d in deltas if "name" in d["function"]}
    return [{**d, "function": {**d["function"], "name": names[d["index"]]}} for d in deltas]


def _whole_calls(deltas: list[Delta], make: Callable[[str], Any]) -> list[Delta]:
    """One delta per call, its arguments in one piece."""
    whole: dict[int, Delta] = {}
    for delta in deltas:
        call = whole.setdefault(delta["index"], {**delta, "function": dict(delta["function"])})
        if call is not delta and "name" not in delta["function"]:
            call["function"]["arguments"] += delta["function"]["arguments"]
    for call in whole.values():
        call["function"]["arguments"] = make(call["function"]["arguments"])
    return list(whole.values())


def _no_arguments(deltas: list[Delta]) -> list[Delta]:
    """The calls take nothing, and their arguments stay the empty text."""
    return [delta for delta in deltas if "name" in delta["function"]]


BAD_TOOLS: Final[Mapping[str, Callable[[list[Delta]], list[Delta]]]] = {
    "no_index": _without("index"),
    "no_id": _without("id"),
    "blank_id": _with_id(lambda _: ""),
    "no_type": _without("type"),
    "same_index": _same_index,
    "same_id": _with_id(lambda _: "call_0"),
    "id_repeated": _id_repeated,
    "late_name": _late_name,
    "name_repeated": _name_repeated,
    "from_one": _from_one,
    "whole_calls": lambda deltas: _whole_calls(deltas, lambda text: text),
    "object_arguments": lambda deltas: _whole_calls(deltas, lambda text: msgspec.json.decode(text.encode())),
    "no_arguments": _no_arguments,
}
