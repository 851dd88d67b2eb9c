"""Forms with files, as bytes: what they may hold, and everything that is wrong with them."""

import io
import wave
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from inferhub.core.errors import InferHubError, Invalid, Overloaded, TooLarge
from inferhub.gateway import forms
from inferhub.gateway.dialects.base import own_dialect
from inferhub.gateway.forms import parse_form, read_form
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.uploads import Uploads
from inferhub.modalities import modalities

BOUNDARY = "a1b2c3"
TRANSCRIPTION = own_dialect(modalities()["transcription"])


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(b"\0\0" * 1600)
    return file.getvalue()


def part(name: str, value: str | bytes, file_name: str | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    named = f'; filename="{file_name}"' if file_name is not None else ""
    return (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
        + data
        + b"\r\n"
    )


def form_of(*parts: bytes, end: bytes = f"--{BOUNDARY}--\r\n".encode()) -> bytes:
    return b"".join(parts) + end


async def read(
    body: bytes, step: int = 1 << 16, limits: GatewayLimits | None = None, **headers: str
) -> forms.Form:
    pieces: Iterator[bytes] = iter([body[at : at + step] for at in range(0, len(body), step)] or [b""])
    left = -(-len(body) // step) or 1

    async def receive() -> dict[str, Any]:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": next(pieces), "more_body": left > 0}

    given = {"content-type": f"multipart/form-data; boundary={BOUNDARY}", **headers}
    raw = {name.encode(): value.encode() for name, value in given.items()}
    return await read_form(raw, receive, limits or GatewayLimits())


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
async def test_fields_and_files_come_out_however_the_network_cuts_them(step: int) -> None:
    body = form_of(
        part("model", "whisper-1"),
        part("timestamp_granularities[]", "word"),
        part("timestamp_granularities[]", "segment"),
        part("response_format", "verbose_json"),
        part("temperature", "0.5"),
        part("stream", "false"),
        part("file", sound(), "../../Ever\ttried;$(x).wav"),
        part("novel", "kept"),
    )
    form = await read(body, step)
    request, unknown, said = parse_form(TRANSCRIPTION, form)
    assert request.model == "whisper-1"
    assert request.timestamp_granularities == ["word", "segment"]
    assert (request.temperature, request.stream) == (0.5, False)
    assert unknown == ("novel",)
    assert msgspec.json.decode(said)["timestamp_granularities"] == ["word", "segment"]
    assert msgspec.json.decode(said)["novel"] == "kept"
    [file] = form.files
    assert (file.field, file.data, file.kind) == ("file", sound(), "audio/wav")
    assert "/" not in file.name
    assert file.name.endswith(".wav")
    assert file.name.isprintable()


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (form_of(part("model", "m")), "missing_required_parameter", "file"),
        (form_of(part("file", b"", "a.wav")), "empty_file", "file"),
        (form_of(part("file", b"PK\3\4" + b"\0" * 60, "a.wav")), "invalid_audio", "file"),
        (form_of(part("file", b"<html></html>", "a.mp3")), "invalid_audio", "file"),
        (form_of(part("file", sound(), "a.wav"), part("file", sound(), "b.wav")), "invalid_value", "file"),
        (form_of(part("file", sound(), "a.wav"), part("mask", sound(), "b.wav")), "invalid_value", "mask"),
        (
            form_of(part("file", sound(), "a.wav"), part("model", "a"), part("model", "b")),
            "duplicate_name",
            "model",
        ),
        (form_of(part("file", sound(), "a.wav"), part("temperature", "hot")), "invalid_type", "temperature"),
        (
            form_of(part("file", sound(), "a.wav"), part("response_format", "docx")),
            "invalid_value",
            "response_format",
        ),
        (form_of(part("file", sound(), "a.wav"), part("api_key", "x")), "unsupported_parameter", "api_key"),
        (form_of(part("file", sound(), "a.wav"), part("prompt", b"\xff\xfe")), "invalid_form", "prompt"),
        (form_of(part("", "x")), "invalid_form", None),
        (form_of(part("model", "m"), end=b""), "invalid_form", None),
        (b"", "invalid_form", None),
        (b"not a form at all", "invalid_form", None),
        (form_of(*[part(f"f{n}", "x") for n in range(forms.MAX_PARTS + 1)]), "invalid_form", None),
    ],
)
async def test_what_is_wrong_is_named(body: bytes, code: str, param: str | None) -> None:
    with pytest.raises(Invalid) as caught:
        parse_form(TRANSCRIPTION, await read(body))
    assert (caught.value.wire_code, caught.value.param) == (code, param), caught.value.message


async def test_too_much_is_refused_while_it_comes() -> None:
    limits = GatewayLimits(max_upload_bytes=10_000)
    endless = part("file", b"RIFF" + b"\0" * 50_000, "a.wav")
    with pytest.raises(TooLarge) as caught:
        await read(form_of(endless), 1000, limits)
    assert caught.value.param == "file"
    with pytest.raises(TooLarge):
        await read(form_of(part("prompt", "x" * (forms.MAX_FIELDS_BYTES + 1))))
    with pytest.raises(TooLarge):
        await read(b"", limits=limits, **{"content-length": "99999999"})


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 300]
)
async def test_a_boundary_that_cannot_be_used_is_refused(content_type: str) -> None:
    with pytest.raises(InferHubError):
        await read(form_of(part("model", "m")), **{"content-type": content_type})


@pytest.mark.parametrize("name", ["__class__", "__init__", "__struct_config__", "__doc__"])
async def test_a_field_named_like_something_of_python_is_only_a_text(name: str) -> None:
    form = await read(form_of(part(name, "x"), part("file", sound(), "a.wav")))
    _, unknown, body = parse_form(TRANSCRIPTION, form)
    assert unknown == (name,)
    assert msgspec.json.decode(body) == {name: "x"}


@pytest.mark.parametrize("end", ["", "1" + "}" * 100_000])
async def test_an_object_that_nests_deeply_is_refused(end: str) -> None:
    form = await read(form_of(part("live", '{"a":' * 100_000 + end), part("file", sound(), "a.wav")))
    with pytest.raises(Invalid, match="deeper"):
        parse_form(TRANSCRIPTION, form)


def test_uploads_have_one_bound_together() -> None:
    uploads = Uploads(GatewayLimits(max_upload_bytes=100, max_uploads_bytes=250))
    with uploads.room({b"content-length": b"100"}), uploads.room({}):
        with uploads.room({b"content-length": b"50"}):
            pass
        with pytest.raises(Overloaded) as caught, uploads.room({b"content-length": b"51"}):
            pass
        assert caught.value.retry_after_s
    with uploads.room({b"content-length": b"999999"}), uploads.room({}):
        pass
    # One that is larger than all together may be is still let in alone, and what fails gives its room back.
    narrow = Uploads(GatewayLimits(max_upload_bytes=100, max_uploads_bytes=50))
    with pytest.raises(ValueError, match="broken"), narrow.room({}):
        raise ValueError("broken")
    with narrow.room({}):
        pass
