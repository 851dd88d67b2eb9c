"""Which calls the cache may answer and keep. Pure; asked by `ring` for every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inferhub.core.call import Call
from inferhub.modalities.chat import ChatRequest, FilePart, ImagePart
from inferhub.modalities.completion import CompletionRequest
from inferhub.modalities.image import ImageRequest


def is_cacheable(call: Call) -> bool:
    """`auto`: what gives the same answer twice anyway. `on` and `semantic`: whatever the client sends."""
    if call.incoming is not None:
        # What is still being said cannot be looked up.
        return False
    if call.cache == "off" or getattr(call.request, "store", None):
        # Whoever asks a vendor to store an answer wants it done, not told.
        return False
    if call.native is not None and call.native.needs:
        # What the request was translated to does not say all of it, nor the deltas all of the answer.
        return False
    if call.cache != "auto":
        return True
    rule = _DETERMINISTIC.get(call.modality)
    return rule is not None and rule(call.request)


def _is_fixed(request: ChatRequest | CompletionRequest) -> bool:
    """One choice, and either no chance in it, or chance that the client has fixed."""
    return (request.temperature == 0 or request.seed is not None) and (request.n or 1) == 1


def _chat(request: ChatRequest) -> bool:
    return _is_fixed(request) and request.web_search_options is None and not _looks_elsewhere(request)


def _looks_elsewhere(request: ChatRequest) -> bool:
    """Whether a part only says where its content is, which may be another one tomorrow."""
    for message in request.messages:
        if isinstance(message.content, list):
            for part in message.content:
                if isinstance(part, ImagePart) and not part.image_url.url.startswith("data:"):
                    return True
                if isinstance(part, FilePart) and part.file.file_data is None:
                    return True
    return False


def _completion(request: CompletionRequest) -> bool:
    return _is_fixed(request) and (request.best_of or 1) == 1


def _image(request: ImageRequest) -> bool:
    return request.seed is not None


_DETERMINISTIC: Mapping[str, Callable[[Any], bool]] = {
    "chat": _chat,
    "completion": _completion,
    "embedding": lambda _: True,
    "image": _image,
    "speech": lambda _: True,
    "transcription": lambda request: not request.temperature,
    "vision": lambda request: request.image is None or request.image.startswith("data:"),
}
"""Other modalities are only kept for those who ask for it."""
