"""What the figures were taken on: processor, cores, kernel, versions. No host name, no path."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.cpu import busy_cores

_PACKAGES = (
    "aiohttp",
    "fastapi",
    "grpcio",
    "httptools",
    "inferhub",
    "msgspec",
    "onnxruntime",
    "pyreqwest",
    "tokenizers",
    "uvicorn",
    "uvloop",
    "xllamacpp",
)
_BUSY_SHARE = 0.25


def describe_machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    busy = busy_cores(0.5)
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "architecture": platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "busy_cores_before": round(busy, 2),
        "is_quiet": busy <= _BUSY_SHARE * cores,
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for tool in ("nginx", "wrk"):
        number = _tool_version(tool)
        if number:
            found[tool] = number
    return found


def _cpu_model() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()


def _tool_version(tool: str) -> str | None:
    path = shutil.which(tool)
    if path is None:
        return None
    said = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=10, check=False)
    match = re.search(r"(\d+\.\d+(?:\.\d+)?)", said.stdout + said.stderr)
    return match[1] if match else "unknown"
