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

DEFAULT_SPEC_TEXT = f"""\
models:
  - name: smollm2-135m
    backend: llamacpp
    weights: smollm2-135m
{_MINILM}"""


def default_spec() -> Spec:
    """A chat model and an embedding model that run on any CPU."""
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
