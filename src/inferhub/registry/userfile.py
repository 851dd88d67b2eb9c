"""A user's own weights, named by path instead of by a name of the index. They are checked, never changed."""

from __future__ import annotations

import stat
from pathlib import Path

from inferhub.core.errors import SetupError, WeightsCorrupt, WeightsMissing

_GGUF_MAGIC = b"GGUF"
_LFS_POINTER = b"version https://git-lfs"


def looks_like_path(text: str) -> bool:
    """Names of the index have no slash; a bare `model.gguf` is a path too."""
    return "/" in text or text.startswith((".", "~")) or text.endswith((".gguf", ".onnx"))


def checked_path(text: str) -> Path:
    """The absolute path of a readable file or folder. Raises `SetupError` or a kind of it."""
    try:
        path = Path(text).expanduser().absolute()
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return path
        if not stat.S_ISREG(mode):
            raise SetupError(f"{path} is neither a regular file nor a folder.", param="weights")
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsMissing(f"There is no weight file {text!r}.", param="weights") from error
    except (OSError, RuntimeError, ValueError) as error:  # not readable; no home for `~`; a NUL in the name
        raise SetupError(
            f"Cannot read {text!r}: {getattr(error, 'strerror', None) or error}.", param="weights"
        ) from error
    if path.suffix.lower() == ".gguf" and not head.startswith(_GGUF_MAGIC):
        raise WeightsCorrupt(f"{path} is not a GGUF model: {_what(head)}.", param="weights")
    return path


def _what(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head == _LFS_POINTER:
        return "it is a Git LFS pointer, fetch the real file with `git lfs pull`"
    return f"it begins with {head[:4]!r}, not with b'GGUF'"
