"""The environment of contenders that are written in Python: made once from `locks/contenders.lock`, beside
InferHub's own, so that neither changes the other's versions. `python -m` makes it ahead of a measure."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import CannotMeasureError
from benchmarks.processes import ROOT, last_words

LOCK = ROOT / "locks" / "contenders.lock"
FOLDER = Path(sys.prefix) / "contenders"
_TIMEOUT_S = 600.0


def contenders_python() -> str:
    """Its interpreter. Raises `CannotMeasureError` where it cannot be made, with the reason."""
    python = FOLDER / "bin" / "python"
    stamp = FOLDER / ".made-from"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        print("Installing LitServe and BentoML into an environment of their own", file=sys.stderr)
        shutil.rmtree(FOLDER, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(FOLDER)])
        _install(python)
        stamp.write_text(wanted)
    return str(python)


def contenders_versions() -> dict[str, str]:
    return dict(re.findall(r"^(bentoml|litserve|onnxruntime)==([\w.]+)", LOCK.read_text(), re.MULTILINE))


def _install(python: Path) -> None:
    """By uv where it is there; pip reads settings that uv does not, such as a mirror's address."""
    given = ["--require-hashes", "-r", str(LOCK)]
    uv = Path(sys.prefix) / "bin" / "uv"
    try:
        _run([str(uv), "pip", "install", "--quiet", "--python", str(python), *given])
    except (CannotMeasureError, FileNotFoundError):
        _run([str(python), "-m", "pip", "install", "--quiet", *given])


def _run(arguments: list[str]) -> None:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotMeasureError(f"LitServe and BentoML were not installed after {_TIMEOUT_S:g} s") from error
    if done.returncode:
        raise CannotMeasureError(f"LitServe and BentoML cannot be installed: {last_words(done.stderr)}")


if __name__ == "__main__":
    contenders_python()
