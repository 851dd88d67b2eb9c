"""A model's folder, judged before anything in it is loaded: safe files, and no code. Reads small files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from inferhub.core.errors import SetupError

_CONFIGS = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def checked_folder(folder: Path | None, model: str) -> Path:
    """Raises `SetupError` for everything that is not loaded."""
    if folder is None or not (folder / "config.json").is_file():
        raise SetupError(
            f"Model {model!r} needs a folder as transformers saves it, with a 'config.json', in `weights`.",
            param="weights",
        )
    for name in _CONFIGS:
        if "auto_map" in _read(folder / name):
            raise SetupError(
                f"Model {model!r} brings its own code ('auto_map' in {name}), which is not run here.",
                param="weights",
            )
    if not any(folder.glob("*.safetensors")):
        raise SetupError(
            f"Model {model!r} has no weights as safetensors; other files can hold code and are not loaded.",
            param="weights",
        )
    return folder


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise SetupError(f"{path} cannot be read.", param="weights") from error
