"""Real models loaded and unloaded again and again: nothing of them stays behind."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import psutil
import pytest
from platformdirs import user_cache_path

from inferhub.core.models import ModelSpec
from inferhub.registry.integrity import State
from inferhub.registry.weights import Weights
from inferhub.testing.calls import Collector, make_call
from inferhub.worker.host import Host

MB = 10**6


def minilm() -> ModelSpec:
    return ModelSpec("minilm", "onnx_embedding", weights=_path("minilm-l6-v2"))


def smollm2() -> ModelSpec:
    return ModelSpec("smollm2", "llamacpp", weights=_path("smollm2-135m"), slots=1)


def _path(name: str) -> str:
    weights = Weights(user_cache_path("inferhub", appauthor=False))
    if weights.state(name) is not State.PRESENT:
        pytest.fail(f"{name} is not here: run `inferhub models pull`", pytrace=False)
    return str(weights.resolve(name))


async def cycle(host: Host, spec: ModelSpec) -> None:
    assert (await host.load(spec)).loaded
    if spec.backend == "onnx_embedding":
        call = make_call("embedding", model=spec.name, input="a")
    else:
        message = {"role": "user", "content": "Hi"}
        call = make_call("chat", model=spec.name, messages=[message], max_tokens=1)
    await host.infer(call, Collector())
    await host.unload(spec.name)


async def turn(count: int, allowed_bytes: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    this, host = psutil.Process(), Host(Path)
    specs = (minilm(), smollm2())
    for spec in specs:  # what is made once and kept
        await cycle(host, spec)
    gc.collect()
    rss, files, threads = this.memory_info().rss, this.num_fds(), this.num_threads()
    for number in range(count):
        await cycle(host, specs[number % 2])
    gc.collect()
    assert this.memory_info().rss - rss < allowed_bytes
    assert this.num_fds() <= files + 2
    assert this.num_threads() <= threads + 4
    # Not ended, or ended and not waited for: a zombie is a child too.
    assert not [child for child in this.children() if "inferhub.worker.child" in " ".join(_line(child))]
    assert not [child for child in this.children() if child.status() == psutil.STATUS_ZOMBIE]
    assert os.listdir(folder) == []  # noqa: PTH208 - pathlib's way is not for coroutines
    assert host.models() == ()
    assert sum(host.tally.unloads.values()) == count + 2
    await host.close()


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t")  # a socket's path has 107 bytes at most


@pytest.mark.timeout(600)
async def test_ten_loads_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    await turn(10, 40 * MB, monkeypatch, short)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_hundred_loads_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    await turn(100, 20 * MB, monkeypatch, short)
