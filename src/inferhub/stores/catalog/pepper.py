"""The installation's pepper: from the settings, or from its file, made at the first start.

Called by assembly and the CLI before they touch API keys.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from inferhub.core.errors import SetupError
from inferhub.settings.model import Settings

MIN_BYTES = 16
MAX_BYTES = 4096


def load_pepper(settings: Settings) -> bytes:
    """The secret that API keys are hashed under. Raises `SetupError` with the remedy."""
    if settings.pepper is not None:
        return settings.pepper.get_secret_value().encode()
    return pepper_file(settings.data_dir / "pepper")


def pepper_file(path: Path) -> bytes:
    """The content of `path`, which is made (mode 0600, in one step) where it does not exist."""
    try:
        if not path.exists():
            _create(path)
        return _read(path)
    except OSError as error:
        raise SetupError(
            f"The pepper {path} cannot be used: {error.strerror}. "
            "Choose another data_dir, or set INFERHUB_PEPPER or INFERHUB_PEPPER_FILE.",
            param="pepper",
        ) from error


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode())
            file.flush()
            os.fsync(file.fileno())
        # A link instead of a rename: of two processes that start at once, the second must not
        # replace the pepper that the first has already hashed keys under.
        path.hardlink_to(partial)
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SetupError(f"The pepper {path} is not a regular file.", param="pepper")
        if status.st_mode & 0o077:
            raise SetupError(
                f"The pepper {path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}); "
                f"run: chmod 600 {path}",
                param="pepper",
            )
        content = file.read(MAX_BYTES + 1).strip()
    if not MIN_BYTES <= len(content) <= MAX_BYTES:
        raise SetupError(
            f"The pepper {path} has {len(content)} bytes; allowed: {MIN_BYTES} to {MAX_BYTES}. "
            "Restore it from a backup; without the original every API key is lost.",
            param="pepper",
        )
    return content
