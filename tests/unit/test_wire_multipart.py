"""Forms as they are sent: read back by an independent reader, whatever names and values say."""

from __future__ import annotations

import pytest

from inferhub.testing.upstream_forms import read_form
from inferhub.wire.multipart import FormFile, encode_form, file_name

EVIL = ['"; filename="x', "a\r\nx-evil: 1\r\n\r\nbody", "--boundary--", "\r\n--", "\0", "имя", "\udcff", ""]


@pytest.mark.parametrize("text", EVIL)
def test_no_name_or_value_ends_its_part(text: str) -> None:
    data = bytes(range(256)) * 3
    kind, body = encode_form([(f"n{text}", text), ("last", "1")], [FormFile("file", data, "audio/wav", text)])
    form = read_form(kind, body)
    assert len(form) == 3
    assert (form["last"], form["file"]["data"]) == ("1", data)
    assert text.encode("utf-8", "replace").decode() in form.values()


def test_the_boundary_is_not_to_be_guessed() -> None:
    kinds = {encode_form([("a", "b")], [])[0] for _ in range(100)}
    assert len(kinds) == 100


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("speech.wav", "audio/wav", "speech.wav"),
        ("speech.exe", "audio/mpeg", "speech.mp3"),
        ("../../etc/passwd", "image/png", "passwd.png"),
        ("C:\\x\\y z.flac", "audio/flac", "y_z.flac"),
        ("", "audio/ogg", "audio.ogg"),
        ("", "", "file.bin"),
        ("имя.mp3", "audio/mpeg", "audio.mp3"),
        ("a" * 300, "image/webp", "a" * 64 + ".webp"),
        ('x"\r\n.png', "image/png", "x.png"),
    ],
)
def test_a_file_is_called_by_its_content(name: str, kind: str, expected: str) -> None:
    assert file_name(name, kind) == expected


def test_a_kind_that_is_none_is_not_sent() -> None:
    _, body = encode_form([], [FormFile("file", b"x", "text/html\r\nx-evil: 1")])
    assert b"evil" not in body
    assert b"application/octet-stream" in body
