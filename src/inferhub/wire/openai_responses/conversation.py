"""Input items, one after the other, as the messages of a chat.

Called by `lower`. Thoughts and function calls belong to the assistant message they stand at; every output of
a function must have its call, and every call its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from inferhub.core.errors import Invalid
from inferhub.wire.openai_responses.items import (
    CallItem,
    CallOutputItem,
    InputAudio,
    InputFile,
    InputImage,
    MessageItem,
    Part,
    ReasoningItem,
    Refusal,
    read_item,
    reference_of,
)
from inferhub.wire.openai_responses.thoughts import unpack


class Conversation:
    """Builds `messages`. Raises `Invalid` with the path of the item that does not fit."""

    def __init__(self, instructions: str | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self.vendor_params: list[str] = []
        """What only a backend that speaks Responses itself understands."""
        self._calls: dict[str, bool] = {}
        """Call id → whether its output was seen."""
        self._thoughts: list[ReasoningItem] = []
        if instructions:
            self.messages.append({"role": "system", "content": instructions})

    def read(self, given: str | Sequence[dict[str, Any]]) -> None:
        if isinstance(given, str):
            self.messages.append({"role": "user", "content": given})
            return
        for position, tree in enumerate(given):
            self._read(tree, f"input[{position}]")
        unanswered = [call_id for call_id, is_answered in self._calls.items() if not is_answered]
        if unanswered:
            raise Invalid(f"No tool output found for function call {unanswered[0][:80]}.", param="input")
        if not self.messages:
            raise Invalid("'input' has no message that a model could answer.", param="input")

    def _read(self, tree: dict[str, Any], where: str) -> None:
        if reference_of(tree) is not None:
            raise Invalid(f"'{where}' refers to an item that is not stored here.", param=where)
        item = read_item(tree, where)
        if item is None:
            self.vendor_params.append(where)
        elif isinstance(item, MessageItem):
            self._message(item, where)
        elif isinstance(item, CallItem):
            self._call(item)
        elif isinstance(item, CallOutputItem):
            self._output(item, where)
        else:
            self._thoughts.append(item)

    def _message(self, item: MessageItem, where: str) -> None:
        if item.role != "assistant":
            self._thoughts.clear()
            self.messages.append({"role": item.role, "content": self._content(item.content, where)})
            return
        message: dict[str, Any] = {"role": "assistant"}
        if isinstance(item.content, str):
            message["content"] = item.content
        else:
            refusals = [part.refusal for part in item.content if isinstance(part, Refusal)]
            spoken = [part for part in item.content if not isinstance(part, Refusal)]
            message["content"] = self._content(spoken, where) if spoken else None
            if refusals:
                message["refusal"] = "".join(refusals)
            elif not spoken:
                message["content"] = ""
        self.messages.append(message)
        self._attach_thoughts(message)

    def _call(self, item: CallItem) -> None:
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != "assistant":
            last = {"role": "assistant", "content": None}
            self.messages.append(last)
        call: dict[str, Any] = {
            "id": item.call_id,
            "type": "function",
            "function": {"name": item.name, "arguments": item.arguments},
        }
        if item.extra_content:
            call["extra_content"] = item.extra_content
        last.setdefault("tool_calls", []).append(call)
        self._attach_thoughts(last)
        self._calls.setdefault(item.call_id, False)

    def _output(self, item: CallOutputItem, where: str) -> None:
        if item.call_id not in self._calls:
            raise Invalid(
                f"No tool call found for function call output with call_id {item.call_id[:80]}.",
                param=f"{where}.call_id",
            )
        self._calls[item.call_id] = True
        content = item.output
        self.messages.append(
            {
                "role": "tool",
                "tool_call_id": item.call_id,
                "content": content if isinstance(content, str) else self._parts(content, f"{where}.output"),
            }
        )

    def _attach_thoughts(self, message: dict[str, Any]) -> None:
        """A thought comes before what it led to."""
        for thought in self._thoughts:
            shown = "".join(part.text for part in thought.summary or thought.content or ())
            if shown:
                message["reasoning_content"] = message.get("reasoning_content", "") + shown
            if thought.encrypted_content:
                details = unpack(thought.encrypted_content, thought.id)
                message.setdefault("reasoning_details", []).extend(msgspec.to_builtins(details))
        self._thoughts.clear()

    def _content(self, content: str | Sequence[Part], where: str) -> str | list[dict[str, Any]]:
        if isinstance(content, str):
            return content
        parts = self._parts(content, f"{where}.content")
        if all(part["type"] == "text" for part in parts):
            # The plainest form: not every chat model takes parts where a text would do.
            return parts[0]["text"] if len(parts) == 1 else parts
        return parts

    def _parts(self, content: Sequence[Part], where: str) -> list[dict[str, Any]]:
        return [self._part(part, f"{where}[{position}]") for position, part in enumerate(content)]

    def _part(self, part: Part, where: str) -> dict[str, Any]:
        if isinstance(part, InputImage):
            return self._image(part, where)
        if isinstance(part, InputAudio):
            return {"type": "input_audio", "input_audio": msgspec.to_builtins(part.input_audio)}
        if isinstance(part, InputFile):
            return self._file(part, where)
        return {"type": "text", "text": part.refusal if isinstance(part, Refusal) else part.text}

    def _image(self, part: InputImage, where: str) -> dict[str, Any]:
        if part.image_url is None:
            if part.file_id is None:
                raise Invalid(f"'{where}' needs 'image_url'.", param=where, code="missing_required_parameter")
            # It takes the picture's place in a chat that nobody is sent.
            self.vendor_params.append(f"{where}.file_id")
            return {"type": "text", "text": ""}
        url: dict[str, Any] = {"url": part.image_url}
        if part.detail == "original":
            self.vendor_params.append(f"{where}.detail")
        elif part.detail is not None:
            url["detail"] = part.detail
        return {"type": "image_url", "image_url": url}

    def _file(self, part: InputFile, where: str) -> dict[str, Any]:
        # Chat takes an address where the data would be.
        data = part.file_data or part.file_url
        if data is None and part.file_id is None:
            raise Invalid(
                f"'{where}' needs 'file_data', 'file_url' or 'file_id'.",
                param=where,
                code="missing_required_parameter",
            )
        named = {"file_data": data, "file_id": part.file_id, "filename": part.filename}
        return {"type": "file", "file": {name: value for name, value in named.items() if value is not None}}
