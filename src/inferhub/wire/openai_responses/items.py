"""The items of a response's `input`: what kinds there are, and each one checked with the path of its fault.

Called by `lower`. An item of a vendor's own kind (a web search, a computer call) is told from a mistake.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec

from inferhub.core.errors import Invalid

T = TypeVar("T")


class InputText(msgspec.Struct, tag_field="type", tag="input_text"):
    text: str


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str


class SummaryText(msgspec.Struct, tag_field="type", tag="summary_text"):
    text: str


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class Refusal(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class InputImage(msgspec.Struct, tag_field="type", tag="input_image"):
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputFile(msgspec.Struct, tag_field="type", tag="input_file"):
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None


class AudioData(msgspec.Struct):
    data: str
    format: Literal["mp3", "wav"]


class InputAudio(msgspec.Struct, tag_field="type", tag="input_audio"):
    input_audio: AudioData


Part = InputText | OutputText | Refusal | InputImage | InputFile | InputAudio
OutputPart = InputText | OutputText | InputImage | InputFile
"""Of a tool's output."""


class MessageItem(msgspec.Struct):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class CallItem(msgspec.Struct):
    call_id: str
    name: str
    arguments: str
    extra_content: dict[str, Any] | None = None
    """What a vendor wants back with the call; our own answers have it where the vendor gave it."""


class CallOutputItem(msgspec.Struct):
    call_id: str
    output: str | list[OutputPart]


class ReasoningItem(msgspec.Struct):
    id: str | None = None
    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


Item = MessageItem | CallItem | CallOutputItem | ReasoningItem

_KINDS: dict[str, type[Item]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "function_call_output": CallOutputItem,
    "reasoning": ReasoningItem,
}
VENDOR_ITEMS = frozenset(
    {
        "additional_tools",
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "compaction",
        "compaction_trigger",
        "computer_call",
        "computer_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "file_search_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "program",
        "program_output",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
"""Kinds that belong to tools which a vendor runs; chat has no words for them."""


def reference_of(item: dict[str, Any]) -> str | None:
    """The id that an `item_reference` names; None for every other item."""
    kind = item.get("type")
    if kind != "item_reference" and (kind is not None or "role" in item):
        return None
    found = item.get("id")
    return found if isinstance(found, str) else None


def read_item(item: dict[str, Any], where: str) -> Item | None:
    """The item, checked; None for a vendor's own kind. Raises `Invalid` with the path of what is wrong."""
    given = item.get("type") or "message"
    kind = given if isinstance(given, str) else ""
    if kind in VENDOR_ITEMS:
        return None
    shape = _KINDS.get(kind)
    if shape is None:
        raise Invalid(
            f"Invalid value for '{where}.type': {str(given)[:40]!r}. Supported values are: "
            f"{', '.join(sorted((*_KINDS, 'item_reference')))}.",
            param=f"{where}.type",
        )
    return read_as(item, shape, where)


def read_as(tree: object, shape: type[T], where: str) -> T:
    """`tree` as `shape`. Raises `Invalid` with the path below `where`."""
    try:
        return msgspec.convert(tree, shape)
    except msgspec.ValidationError as error:
        raise _explained(error, where) from error


_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`$")


def _explained(error: msgspec.ValidationError, where: str) -> Invalid:
    match = _PLACE.match(str(error))
    what, path = (match["what"], match["path"] or "") if match else (str(error), "")
    missing = _MISSING.match(what)
    param = f"{where}{path}"
    if missing and missing["field"] != "type":
        param = f"{param}.{missing['field']}"
        return Invalid(f"'{param}' is required.", param=param, code="missing_required_parameter")
    # A part of an unknown kind: what is named is the part, as OpenAI does.
    param = param.removesuffix(".type")
    is_type = what.startswith("Expected") and ", got" in what
    wanted = what.replace("`", "")
    return Invalid(
        f"Invalid value for '{param}': {wanted}.",
        param=param,
        code="invalid_type" if is_type else "invalid_value",
    )
