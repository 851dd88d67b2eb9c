"""Memory, devices and disk, read from this machine and, for containers, from the files a kernel shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest

from inferhub.core.errors import SetupError
from inferhub.core.serving import DeviceStatus
from inferhub.telemetry.resources import (
    choose_device,
    cuda_problem,
    devices,
    disk_free_bytes,
    memory,
    visible_indices,
)

MIB = 1 << 20
CPU = DeviceStatus("cpu", "a CPU", 64 << 30, 32 << 30)
SMALL = DeviceStatus("cuda:0", "a small GPU", 8 << 30, 6 << 30)
LARGE = DeviceStatus("cuda:1", "a large GPU", 80 << 30, 70 << 30)


def kernel(root: Path, cgroup: str, files: dict[str, object]) -> Path:
    """The part of /proc and /sys that says how much memory a cgroup may use."""
    for name, content in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def v1(folder: str, limit: int, used: int, reclaimable: int) -> dict[str, object]:
    base = f"sys/fs/cgroup/memory/{folder}"
    return {
        f"{base}/memory.limit_in_bytes": limit,
        f"{base}/memory.usage_in_bytes": used,
        f"{base}/memory.stat": f"cache 5\ntotal_inactive_file {reclaimable}",
    }


def v2(folder: str, limit: object, used: int, reclaimable: int) -> dict[str, object]:
    base = f"sys/fs/cgroup/{folder}"
    return {
        f"{base}/memory.max": limit,
        f"{base}/memory.current": used,
        f"{base}/memory.stat": f"anon 5\ninactive_file {reclaimable}",
    }


def test_memory_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    host = psutil.virtual_memory().total
    assert memory(tmp_path).total_bytes == host
    unlimited = v1("", 9223372036854771712, 10, 0) | v2("app", "max", 10, 0)
    found = memory(kernel(tmp_path, "4:memory:/\n0::/app", unlimited))
    assert found.total_bytes == host
    assert 0 < found.free_bytes < host


@pytest.mark.parametrize(
    ("cgroup", "files", "total", "free"),
    [
        ("0::/app", v2("app", 100 * MIB, 60 * MIB, 20 * MIB), 100, 60),
        ("0::/", v2("", 100 * MIB, 60 * MIB, 0), 100, 40),
        ("0::/pod/app", v2("pod", 90 * MIB, 80 * MIB, 0) | v2("pod/app", 100 * MIB, 5 * MIB, 0), 90, 10),
        ("0::/../outside", v2("", 100 * MIB, 60 * MIB, 0), 100, 40),
        ("5:cpu,cpuacct:/x\n4:memory:/app", v1("app", 100 * MIB, 60 * MIB, 20 * MIB), 100, 60),
        ("4:memory:/docker/of-the-host", v1("", 100 * MIB, 60 * MIB, 0), 100, 40),
        ("0::/app", v2("app", 100 * MIB, 120 * MIB, 0), 100, 0),
    ],
)
def test_memory_heeds_the_lowest_limit_of_the_container(
    tmp_path: Path, cgroup: str, files: dict[str, object], total: int, free: int
) -> None:
    found = memory(kernel(tmp_path, cgroup, files))
    assert (found.total_bytes, found.free_bytes) == (total * MIB, free * MIB)


def test_memory_of_a_limit_in_another_hierarchy_is_not_ours(tmp_path: Path) -> None:
    found = memory(kernel(tmp_path, "4:cpu:/app", v1("app", MIB, 0, 0)))
    assert found.total_bytes == psutil.virtual_memory().total


def test_devices_begin_with_the_cpu() -> None:
    cpu = devices()[0]
    assert cpu.id == "cpu"
    assert cpu.name
    assert 0 < cpu.memory_free_bytes < cpu.memory_total_bytes <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("wanted", "found", "chosen"),
    [
        ("auto", [CPU], "cpu"),
        ("auto", [CPU, SMALL], "cuda:0"),
        ("auto", [CPU, SMALL, LARGE], "cuda:1"),
        ("cpu", [CPU, SMALL], "cpu"),
        ("cuda:1", [CPU, SMALL, LARGE], "cuda:1"),
    ],
)
def test_choose_device(wanted: str, found: list[DeviceStatus], chosen: str) -> None:
    assert choose_device(wanted, found) == chosen


def test_missing_cuda_device_is_refused_naming_those_there() -> None:
    with pytest.raises(
        SetupError, match=r"no device 'cuda:2' here; devices: cpu \(a CPU\), cuda:0 \(a small GPU\)"
    ):
        choose_device("cuda:2", [CPU, SMALL])


@pytest.mark.parametrize(
    "wanted", ["", "gpu", "cuda", "cuda:", "cuda:01", "cuda:-1", "CPU", "cuda:1 ", "cuda:0\n"]
)
def test_malformed_device_is_refused(wanted: str) -> None:
    with pytest.raises(SetupError, match="is not one of: auto, cpu, cuda:N"):
        choose_device(wanted)


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("1,7,2", [1]),
        ("-1", []),
        ("GPU-b,GPU-a", [1, 0]),
        ("GPU-x,0", []),
        ("0,0", [0]),
    ],
)
def test_visible_cuda_devices_are_numbered_as_cuda_does(setting: str | None, indices: list[int]) -> None:
    assert visible_indices(setting, ["GPU-a1", "GPU-b2", "GPU-c3"]) == indices


def test_disk_free_bytes_of_a_folder_not_made_yet(tmp_path: Path) -> None:
    free = disk_free_bytes(tmp_path / "not/yet")
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


@pytest.fixture
def cuda() -> list[DeviceStatus]:
    found = [d for d in devices() if d.id.startswith("cuda:")]
    if not found:
        pytest.skip(f"no CUDA device: {cuda_problem()}")
    return found


@pytest.mark.gpu
def test_cuda_devices_report_their_memory(cuda: list[DeviceStatus]) -> None:
    assert [d.id for d in cuda] == [f"cuda:{i}" for i in range(len(cuda))]
    assert cuda_problem() is None
    for device in cuda:
        assert device.name
        assert 0 < device.memory_free_bytes <= device.memory_total_bytes


@pytest.mark.gpu
def test_auto_prefers_a_cuda_device(cuda: list[DeviceStatus]) -> None:
    assert choose_device("auto") in {d.id for d in cuda}


def test_machine_without_cuda_says_why() -> None:
    if any(d.id != "cpu" for d in devices()):
        pytest.skip("this machine has a CUDA device")
    assert cuda_problem()
    assert choose_device("auto") == "cpu"
    with pytest.raises(SetupError, match=r"no device 'cuda:0' here; devices: cpu .*NV"):
        choose_device("cuda:0")
