"""What Gemini's models answer that speak and paint, and Imagen's. Read by `upstream_dialects.gemini`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from inferhub.testing.upstream_dialects.base import BadRequest, Request
from inferhub.testing.upstream_script import PROMPT_TOKENS, Script
from inferhub.testing.upstream_sounds import PIECE_MS, RATE_HZ, picture, tone

MADE_TOKENS = 1290
_HEIGHTS = {"1:1": 64, "16:9": 36, "3:2": 43}


def is_made(request: Request) -> bool:
    """Whether sound or a picture is asked for."""
    return bool({"AUDIO", "IMAGE"} & {*_config(request).get("responseModalities", ())})


def made(script: Script, request: Request) -> dict[str, Any]:
    """A whole `GenerateContentResponse`."""
    config = _config(request)
    if "AUDIO" in config["responseModalities"]:
        voice = config.get("speechConfig", {}).get("voiceConfig", {}).get("prebuiltVoiceConfig", {})
        if not voice.get("voiceName"):
            raise BadRequest("A voice is required.")
        blob = _blob(f"audio/L16;codec=pcm;rate={RATE_HZ}", tone(script.n * PIECE_MS))
    else:
        height = _HEIGHTS.get(config.get("imageConfig", {}).get("aspectRatio", "1:1"), 64)
        blob = _blob("image/png", picture(64, height, script.n))
    content: dict[str, Any] = {"parts": [{"inlineData": blob}], "role": "model"}
    if script.finish == "words":
        content["parts"] = [{"text": "I would rather not."}]
    reason = {"content_filter": "IMAGE_SAFETY"}.get(script.finish, "STOP")
    candidate = {"finishReason": reason} if reason != "STOP" else {"content": content, "finishReason": reason}
    usage = {"promptTokenCount": PROMPT_TOKENS, "candidatesTokenCount": MADE_TOKENS}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "scripted"}


def predictions(script: Script, request: Request) -> dict[str, Any]:
    """Imagen's."""
    if script.finish == "content_filter":
        return {"predictions": [{"raiFilteredReason": "It was filtered."}]}
    parameters = request.get("parameters") or {}
    height = _HEIGHTS.get(parameters.get("aspectRatio", "1:1"), 64)
    count = int(parameters.get("sampleCount", 4))
    return {
        "predictions": [
            {
                "mimeType": "image/png",
                "bytesBase64Encoded": base64.b64encode(picture(64, height, place)).decode(),
            }
            for place in range(count)
        ]
    }


def _blob(kind: str, data: bytes) -> dict[str, str]:
    return {"mimeType": kind, "data": base64.b64encode(data).decode()}


def _config(request: Request) -> Mapping[str, Any]:
    found = request.get("generationConfig") or {}
    assert isinstance(found, dict)
    return found
