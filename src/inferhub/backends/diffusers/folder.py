"""A model's folder, judged before anything in it is loaded: a known family, safe files, no code.

Pure apart from reading `model_index.json` and the names of files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from inferhub.core.errors import SetupError

FAMILIES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "FluxPipeline": "flux",
}
"""What a `model_index.json` may name as its class."""

_LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}
"""Where the parts of a model may come from; another name would be a module in the folder."""


def family_of(folder: Path | None, model: str) -> str:
    """`sd`, `sdxl` or `flux`. Raises `SetupError` for everything that is not loaded."""
    if folder is None or not (folder / "model_index.json").is_file():
        raise SetupError(
            f"Model {model!r} needs a folder as diffusers saves it, with a 'model_index.json', in `weights`.",
            param="weights",
        )
    try:
        index: dict[str, Any] = msgspec.json.decode(
            (folder / "model_index.json").read_bytes(), type=dict[str, Any]
        )
    except (OSError, msgspec.DecodeError) as error:
        raise SetupError(f"{folder / 'model_index.json'} cannot be read.", param="weights") from error
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is None:
        raise SetupError(
            f"Model {model!r} is a {str(index.get('_class_name'))[:64]!r}; it must be one of: "
            f"{', '.join(FAMILIES)}.",
            param="weights",
        )
    _check_parts(index, model)
    if not any(folder.rglob("*.safetensors")):
        raise SetupError(
            f"Model {model!r} has no weights as safetensors; other files can hold code and are not loaded.",
            param="weights",
        )
    return family


def _check_parts(index: dict[str, Any], model: str) -> None:
    for part, origin in index.items():
        if part.startswith("_") or not isinstance(origin, list) or origin[:1] == [None]:
            continue
        if not origin or origin[0] not in _LIBRARIES:
            raise SetupError(
                f"Model {model!r} brings its own code for {part[:64]!r}, which is not run here.",
                param="weights",
            )
