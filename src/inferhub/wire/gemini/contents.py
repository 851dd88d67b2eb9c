"""Chat messages as Gemini's `contents` and `systemInstruction`.

`request` calls it. Pure: what cannot be said in Gemini's form is refused by name, nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inferhub.core.errors import Invalid, Unsupported
from inferhub.modalities.chat import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    Part,
    ReasoningDetail,
    RefusalPart,
    TextPart,
    ToolCall,
)
from inferhub.wire.foreign import NOT_JSON

Json = dict[str, Any]

DETAIL_FORMAT = "google-gemini-v1"
"""Marks reasoning details that only Google can read again; those of other vendors are never sent to it."""

UNSIGNED = "skip_thought_signature_validator"
"""What Google documents in place of a signature, for calls that it did not make itself."""

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(slots=True)
class Conversation:
    """What was said so far, in Gemini's form."""

    needs_signatures: bool
    """Whether the model refuses function calls without one."""
    system: list[Json] = field(default_factory=list)
    contents: list[Json] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    """Function of each call by its id: answers of tools name only the id."""
    _order: dict[str, int] = field(default_factory=dict)

    def add(self, message: Message, where: str) -> None:
        match message.role:
            case "system" | "developer":
                self.system += [_instruction(part, at) for part, at in _parts(message, where)]
            case "user":
                self._append("user", [_part(part, at) for part, at in _parts(message, where)])
            case "assistant":
                self._append("model", self._said(message, where))
            case "tool":
                self._append("user", [self._result(message, where)])

    def _append(self, role: str, parts: list[Json]) -> None:
        """Neighbours of one role become one turn; results of tools keep to themselves, as many as calls."""
        if not parts:
            return
        last = self.contents[-1] if self.contents else None
        is_result = "functionResponse" in parts[0]
        if last is None or last["role"] != role or ("functionResponse" in last["parts"][0]) != is_result:
            last = {"role": role, "parts": []}
            self.contents.append(last)
        last["parts"] += parts
        if is_result:
            last["parts"].sort(key=lambda part: self._order[part["functionResponse"]["id"]])

    def _said(self, message: Message, where: str) -> list[Json]:
        thoughts, signature = _thoughts(message.reasoning_details or ())
        texts = [_part(part, at) for part, at in _parts(message, where)]
        if message.refusal:
            texts.append({"text": message.refusal})
        if signature:
            texts = texts or [{"text": ""}]
            texts[-1]["thoughtSignature"] = signature
        calls = [
            self._call(call, f"{where}.tool_calls[{position}]")
            for position, call in enumerate(message.tool_calls or ())
        ]
        if calls and self.needs_signatures:
            # Only the first of calls made together has one.
            calls[0].setdefault("thoughtSignature", UNSIGNED)
        return [*thoughts, *texts, *calls]

    def _call(self, call: ToolCall, where: str) -> Json:
        self._names[call.id] = call.function.name
        self._order[call.id] = len(self._order)
        args = _object(call.function.arguments or "{}")
        if args is None:
            raise Invalid(
                f"'{where}.function.arguments' is not a JSON object.", param=f"{where}.function.arguments"
            )
        part: Json = {"functionCall": {"id": call.id, "name": call.function.name, "args": args}}
        signature = _signature(call.extra_content)
        if signature:
            part["thoughtSignature"] = signature
        return part

    def _result(self, message: Message, where: str) -> Json:
        texts: list[str] = []
        media: list[Json] = []
        for part, at in _parts(message, where):
            lifted = _part(part, at)
            if "text" in lifted:
                texts.append(lifted["text"])
            else:
                media.append(lifted)
        text = "".join(texts)
        response: Any = None if message.is_error else _object(text)
        if response is None:
            # The two names that Google documents for what is not an object itself.
            response = {"error" if message.is_error else "output": text}
        call_id = message.tool_call_id or ""
        if call_id not in self._names:
            raise Invalid(f"'{where}.tool_call_id' names no earlier call.", param=f"{where}.tool_call_id")
        result: Json = {"id": call_id, "name": self._names[call_id], "response": response}
        if media:
            result["parts"] = media
        return {"functionResponse": result}


def lift_messages(messages: Sequence[Message], *, needs_signatures: bool) -> tuple[list[Json], list[Json]]:
    """(parts of the system instruction, contents)."""
    conversation = Conversation(needs_signatures)
    for position, message in enumerate(messages):
        conversation.add(message, f"messages[{position}]")
    if not conversation.contents:
        # Gemini answers no instruction alone.
        return [], [{"role": "user", "parts": conversation.system or [{"text": ""}]}]
    return conversation.system, conversation.contents


def _parts(message: Message, where: str) -> Iterator[tuple[Part, str]]:
    """Everything in the content that says something: Gemini refuses empty texts."""
    content = message.content
    if isinstance(content, str):
        if content:
            yield TextPart(content), f"{where}.content"
        return
    for position, part in enumerate(content or ()):
        if not (isinstance(part, TextPart) and not part.text):
            yield part, f"{where}.content[{position}]"


def _instruction(part: Part, where: str) -> Json:
    if not isinstance(part, TextPart):
        raise Unsupported("Instructions to this model are text only.", param=where)
    return {"text": part.text}


def _part(part: Part, where: str) -> Json:
    match part:
        case TextPart():
            return {"text": part.text}
        case RefusalPart():
            return {"text": part.refusal}
        case ImagePart():
            return _inline(part.image_url.url, f"{where}.image_url.url")
        case AudioPart():
            audio = part.input_audio
            return {"inlineData": {"mimeType": f"audio/{audio.format}", "data": audio.data}}
        case FilePart():
            if part.file.file_data is None:
                raise Unsupported(
                    "This model takes files as 'file_data' only: it cannot open a 'file_id'.",
                    param=f"{where}.file.file_id",
                )
            return _inline(part.file.file_data, f"{where}.file.file_data")


def _inline(url: str, where: str) -> Json:
    head = _DATA_URL.match(url)
    if head is not None:
        return {"inlineData": {"mimeType": head[1].lower(), "data": url[head.end() :]}}
    if url.startswith("data:"):
        raise Invalid(f"'{where}' is not a 'data:<type>;base64,' URL.", param=where)
    raise Unsupported(f"This model takes '{where}' as a 'data:' URL only.", param=where)


def _object(text: str) -> msgspec.Raw | None:
    """The text itself, where it is a JSON object: its numbers and order stay as they were written."""
    try:
        _decode_fields(text)
    except NOT_JSON:
        return None
    return msgspec.Raw(text.encode())


def _signature(extra_content: Any) -> str | None:
    google = extra_content.get("google") if isinstance(extra_content, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) and signature else None


def _thoughts(details: Sequence[ReasoningDetail]) -> tuple[list[Json], str]:
    """(signed thoughts, the signature of the text) out of what the reader made of them."""
    thoughts: list[Json] = []
    signature = ""
    for detail in details:
        if detail.format != DETAIL_FORMAT:
            continue
        if detail.type == "reasoning.encrypted":
            signature = detail.data or signature
        elif detail.signature:
            thoughts.append(
                {"text": detail.text or "", "thought": True, "thoughtSignature": detail.signature}
            )
    return thoughts, signature
