"""What this machine has and what is free now: memory, CUDA devices, disk.

Called by the worker (which device, what to report), the registry (is there room) and the doctor.
Never reserves anything, and never imports an engine.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from inferhub.core.errors import SetupError
from inferhub.core.serving import DeviceStatus

_log = logging.getLogger(__name__)
_DEVICE = re.compile(r"auto|cpu|cuda:(0|[1-9][0-9]{0,2})")


def default_threads() -> int:
    """How many threads an engine gets unless told: half of the cores this process may use.

    Engines that take them all wait for each other while anything else runs.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


@dataclass(frozen=True, slots=True)
class Memory:
    """RAM that this process may use: the machine's, or its container's where that is less."""

    total_bytes: int
    free_bytes: int


def memory(root: Path = Path("/")) -> Memory:
    """RAM within the limits of every enclosing cgroup (v1 and v2); `root` is where `/proc` and `/sys` are."""
    import psutil

    host = psutil.virtual_memory()
    total, free = host.total, host.available
    for limit, used in _cgroup_limits(root):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return Memory(total, free)


def process_memory_bytes(pid: int) -> int:
    """What would be free without this process: its own pages, and its share of those it shares (PSS).

    The resident set elsewhere than on Linux; 0 for a process that is gone or not ours.
    """
    import psutil

    for line in _text(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) * 1024
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def process_memory(pid: int) -> Mapping[str, int]:
    """Device → what a process takes there; empty for one that is gone or not ours."""
    ram = process_memory_bytes(pid)
    return {"cpu": ram, **_vram_of(pid)} if ram else {}


def disk_free_bytes(path: Path) -> int:
    """Free space where `path` is, or would be made. Raises `SetupError` when that cannot be read."""
    existing = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    try:
        return shutil.disk_usage(existing).free
    except OSError as error:
        raise SetupError(f"Cannot read the free space of {existing}: {error.strerror}.") from error


def devices() -> tuple[DeviceStatus, ...]:
    """The CPU first, then every CUDA device this process may use. A device that fails is left out."""
    ram = memory()
    return (DeviceStatus("cpu", _cpu_name(), ram.total_bytes, ram.free_bytes), *_cuda_devices())


def choose_device(wanted: str, found: Sequence[DeviceStatus] | None = None) -> str:
    """The device id that `wanted` means here. `auto` is the CUDA device with most free memory, else `cpu`.

    Raises `SetupError` for a device that is not there and for anything but `auto`, `cpu`, `cuda:N`.
    """
    if not _DEVICE.fullmatch(wanted):
        raise SetupError(
            f"Device {wanted!r} is not one of: auto, cpu, cuda:N (as in cuda:0).", param="device"
        )
    if wanted == "cpu":
        return wanted
    known = devices() if found is None else found
    cuda = [d for d in known if d.id.startswith("cuda:")]
    if wanted == "auto":
        return max(cuda, key=lambda d: d.memory_free_bytes).id if cuda else "cpu"
    if any(d.id == wanted for d in cuda):
        return wanted
    there = ", ".join(f"{d.id} ({d.name})" for d in known) or "none"
    hint = f" {problem}" if not cuda and (problem := cuda_problem()) else ""
    raise SetupError(f"There is no device {wanted!r} here; devices: {there}.{hint}", param="device")


def cuda_problem() -> str | None:
    """Why no CUDA device can be read, in words for the operator; None when they can be."""
    return _nvml()[1]


def visible_indices(setting: str | None, uuids: Sequence[str]) -> list[int]:
    """Which devices CUDA shows, in CUDA's order, under this value of `CUDA_VISIBLE_DEVICES`.

    NVML ignores that variable, so without this `cuda:0` would name another card here than in an engine.
    Like CUDA, an unknown entry hides itself and all that follow.
    """
    if setting is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in (e.strip() for e in setting.split(",")):
        if entry.isdecimal():
            index = int(entry)
        else:
            index = next((i for i, uuid in enumerate(uuids) if entry and uuid.startswith(entry)), -1)
        if not 0 <= index < len(uuids) or index in chosen:
            break
        chosen.append(index)
    return chosen


@cache
def _nvml() -> tuple[Any, str | None]:
    """NVML ready to be asked, or None and the reason. Opened once: it stays open for the process."""
    try:
        import pynvml
    except ImportError:
        return None, "NVIDIA devices are read through NVML: install the `cuda` extra."
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"NVML, part of the NVIDIA driver, says: {error}."
    return pynvml, None


def _cuda_devices() -> Iterator[DeviceStatus]:
    nvml, _ = _nvml()
    for number, handle in _cuda_handles(nvml):
        try:
            vram = nvml.nvmlDeviceGetMemoryInfo(handle)
            name = nvml.nvmlDeviceGetName(handle)
        except nvml.NVMLError as error:
            _log.warning("CUDA device %d cannot be read: %s", number, error)
            continue
        yield DeviceStatus(f"cuda:{number}", str(name), int(vram.total), int(vram.free))


def _vram_of(pid: int) -> Mapping[str, int]:
    """Device → VRAM of a process, where the driver tells: in a container of its own it knows other ids."""
    nvml, _ = _nvml()
    found: dict[str, int] = {}
    for number, handle in _cuda_handles(nvml):
        try:
            running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError as error:
            _log.warning("The processes on CUDA device %d cannot be read: %s", number, error)
            continue
        if taken := sum(process.usedGpuMemory or 0 for process in running if process.pid == pid):
            found[f"cuda:{number}"] = taken
    return found


def _cuda_handles(nvml: Any) -> Sequence[tuple[int, Any]]:
    """Number → NVML's handle of every device that CUDA shows this process."""
    if nvml is None:
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        uuids = [nvml.nvmlDeviceGetUUID(h) for h in handles]
    except nvml.NVMLError as error:
        _log.warning("CUDA devices cannot be listed: %s", error)
        return ()
    # The variable belongs to the driver, not to our settings: engines read it too, and must agree with us.
    visible = visible_indices(os.environ.get("CUDA_VISIBLE_DEVICES"), uuids)
    return [(number, handles[index]) for number, index in enumerate(visible)]


@cache
def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, memory in use that cannot be reclaimed) of this process's cgroup and its ancestors."""
    mounts = root / "sys/fs/cgroup"
    for controllers, group in _cgroups(root):
        if controllers == "":
            base, limit_file, usage_file, reclaimable = (
                mounts,
                "memory.max",
                "memory.current",
                "inactive_file",
            )
        elif "memory" in controllers.split(","):
            base, limit_file = mounts / "memory", "memory.limit_in_bytes"
            usage_file, reclaimable = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # In a container the path may be the host's and not exist here: the walk up still meets the mount.
        for folder in (base.joinpath(*group[:depth]) for depth in range(len(group), -1, -1)):
            limit, usage = _number(folder / limit_file), _number(folder / usage_file)
            if limit is not None and usage is not None:
                yield limit, max(0, usage - _stat(folder / "memory.stat", reclaimable))


def _cgroups(root: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(controllers, path components) of each hierarchy; controllers are empty for cgroup v2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        components = tuple(c for c in path.split("/") if c)
        # `..` is how a cgroup namespace shows a group outside itself; it leads nowhere in the mount.
        yield controllers, () if ".." in components else components


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """None for a missing file and for `max`."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _stat(path: Path, key: str) -> int:
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdecimal():
            return int(value)
    return 0
