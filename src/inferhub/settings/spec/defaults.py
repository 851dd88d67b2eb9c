"""The specs that need no file: the built-in one, and the one of `inferhub serve --model PATH`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from inferhub.settings.spec.load import Spec, load_spec

_MINILM = """\
  - name: minilm-l6-v2
    backend: onnx_embedding
    weights: minilm-l6-v2
"""

_MEDIA = """\
  - name: whisper-base
    backend: whisper
    weights: whisper-base
  - name: whisper-tiny.en
    backend: whisper
    weights: whisper-tiny.en
  - name: kokoro
    backend: kokoro
    weights: kokoro-82m
  - name: hibari
    backend: hibari
  - name: scene
    backend: scene
  - name: style
    backend: style_transfer
  - name: realesrgan
    backend: realesrgan
    weights: realesrgan
"""

_ALIASES = {
    "whisper-1": "whisper-base",
    "gpt-4o-transcribe": "whisper-base",
    "gpt-4o-mini-transcribe": "whisper-base",
    "gpt-4o-transcribe-diarize": "whisper-base",
    "tts-1": "kokoro",
    "tts-1-hd": "kokoro",
    "gpt-4o-mini-tts": "kokoro",
}
"""OpenAI's names → what stands in for them, so that clients written for them run unchanged."""

_ROUTES = "".join(f"  - {{name: {name}, model: {model}}}\n" for name, model in _ALIASES.items())

DEFAULT_SPEC_TEXT = f"""\
models:
  - name: smollm2-135m
    backend: llamacpp
    weights: smollm2-135m
{_MINILM}{_MEDIA}routes:
{_ROUTES}"""


def default_spec() -> Spec:
    """Models for chat, embeddings, speech and pictures that run on any CPU; speech and pictures on demand."""
    return load_spec(DEFAULT_SPEC_TEXT, env={}, source="built-in spec")


def spec_text_for_model(path: Path) -> str:
    """A `hub.yaml` that serves one GGUF file under the name of the file, and the embedding model."""
    weights = str(path).replace("${", "$${")
    if weights.startswith("os.environ/"):
        weights = f"./{weights}"
    return (
        f"models:\n  - name: {json.dumps(_name_of(path))}\n    backend: llamacpp\n"
        f"    weights: {json.dumps(weights, ensure_ascii=False)}\n{_MINILM}"
    )


def spec_for_model(path: Path) -> Spec:
    """The loaded form of `spec_text_for_model`. Raises `SetupError` where the path cannot be written."""
    return load_spec(spec_text_for_model(path), env={}, source="--model")


def _name_of(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._@-]+", "-", path.stem).strip("-._")[:128]
    return name or "model"
