"""Chat completions: what a request may say, what backends yield (`deltas`), what clients get (`answer`).

Unknown fields inside messages and tools are not modelled here; they travel in `Call.body`.
"""

from __future__ import annotations

from inferhub.modalities.base import Modality
from inferhub.modalities.chat.answer import ChatResponse, ChatWriter, Logprobs, fold
from inferhub.modalities.chat.deltas import (
    ChatDelta,
    FinishReason,
    FunctionDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from inferhub.modalities.chat.estimate import cap, estimate
from inferhub.modalities.chat.request import (
    AllowedTools,
    AudioPart,
    ChatRequest,
    FilePart,
    FunctionCall,
    FunctionSpec,
    ImagePart,
    JsonFormat,
    Message,
    NamedTool,
    Part,
    RefusalPart,
    SchemaFormat,
    TextFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    check,
    requires,
)

__all__ = [
    "MODALITY",
    "AllowedTools",
    "AudioPart",
    "ChatDelta",
    "ChatRequest",
    "ChatResponse",
    "FilePart",
    "FinishReason",
    "FunctionCall",
    "FunctionDelta",
    "FunctionSpec",
    "ImagePart",
    "JsonFormat",
    "Logprobs",
    "Message",
    "NamedTool",
    "Part",
    "RefusalPart",
    "SchemaFormat",
    "TextFormat",
    "TextPart",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "TopLogprob",
]

MODALITY = Modality(
    name="chat",
    path="/v1/chat/completions",
    summary="Answer a conversation",
    request=ChatRequest,
    delta=ChatDelta,
    response=ChatResponse,
    check=check,
    requires=requires,
    estimate=estimate,
    cap=cap,
    fold=fold,
    writer=ChatWriter,
    features=(
        "stream",
        "tools",
        "tool_choice_named",
        "json_object",
        "json_schema",
        "logprobs",
        "n",
        "seed",
        "logit_bias",
        "reasoning_effort",
        "vision",
        "audio_input",
        "audio_output",
        "file_input",
        "prediction",
        "web_search_options",
        "functions",
        "verbosity",
        "store",
        "service_tier",
    ),
    example={"messages": [{"role": "user", "content": "Say hello."}]},
)
