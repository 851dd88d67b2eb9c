"""What a server's streams and lists are made of, as the client reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from inferhub.modalities.chat import Logprobs, ToolCallDelta
from inferhub.modalities.completion import CompletionChoice
from inferhub.modalities.tokens import TokenUsage


class ChunkDelta(msgspec.Struct):
    """What a piece of a streamed answer adds."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(msgspec.Struct):
    index: int
    delta: ChunkDelta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    """One event of a streamed chat."""

    id: str
    model: str
    choices: list[ChunkChoice]
    usage: TokenUsage | None = None


class CompletionChunk(msgspec.Struct):
    """One event of a streamed completion."""

    id: str
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage | None = None


class ModelCard(msgspec.Struct):
    """A model as the server lists it."""

    id: str
    created: int
    owned_by: str
    inferhub: dict[str, Any] = {}
    """What OpenAI's list has no field for: backend, device, capabilities, readiness."""

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(c["modality"] for c in self.inferhub.get("capabilities", ()))


@dataclass(frozen=True, slots=True)
class ServedSpec:
    """The `hub.yaml` in force; `revision` guards a later `put_spec`."""

    text: str
    revision: int | None
