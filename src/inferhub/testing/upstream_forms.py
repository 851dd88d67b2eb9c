"""Reads forms with files as the scripted upstream is sent them, with the standard library.

Shares nothing with the code that writes them. A file is remembered by its length and its hash.
"""

from __future__ import annotations

from email.parser import BytesHeaderParser
from email.policy import HTTP
from hashlib import sha256
from typing import Any

FORM = "multipart/form-data"


class BadForm(ValueError):
    """The body is no form."""


def read_form(content_type: str, body: bytes) -> dict[str, Any]:
    """Field → its text, a list where its name ends with `[]`, or the file that it is: `name`, `kind`,
    `bytes`, `sha256` and `data`."""
    head = BytesHeaderParser(policy=HTTP).parsebytes(b"content-type: " + content_type.encode() + b"\r\n\r\n")
    boundary = head.get_boundary()
    if head.get_content_type() != FORM or not boundary:
        raise BadForm("not a form")
    first, *parts, last = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    if first or last != b"--\r\n":
        raise BadForm("the boundaries are not where they must be")
    fields: dict[str, Any] = {}
    for part in parts:
        name, value = _read_part(part)
        if name.endswith("[]"):
            fields.setdefault(name[:-2], []).append(value)
        elif name in fields:
            raise BadForm(f"{name!r} comes twice")
        else:
            fields[name] = value
    return fields


def _read_part(part: bytes) -> tuple[str, Any]:
    head, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    message = BytesHeaderParser(policy=HTTP).parsebytes(head + b"\r\n\r\n")
    name = message.get_param("name", header="content-disposition")
    if message.get_content_disposition() != "form-data" or not isinstance(name, str) or message.defects:
        raise BadForm("a part without a name")
    if set(message.keys()) - {"content-disposition", "content-type"}:
        raise BadForm(f"strange headers: {message.keys()}")
    filename = message.get_filename()
    if filename is None:
        return name, data.decode()
    return name, _file(filename, message.get_content_type(), data)


def _file(name: str, kind: str, data: bytes) -> dict[str, Any]:
    digest = sha256(data).hexdigest()
    return {"name": name, "kind": kind, "bytes": len(data), "sha256": digest, "data": data}


def described(fields: dict[str, Any]) -> dict[str, Any]:
    """For the log: without the files' contents."""
    return {name: _described(value) for name, value in fields.items()}


def _described(value: Any) -> Any:
    if isinstance(value, list):
        return [_described(item) for item in value]
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key != "data"}
    return value


def typed(fields: dict[str, Any]) -> dict[str, Any]:
    """As JSON would have it, for checks by a schema of JSON: numbers, truths, and files as text."""
    return {name: _typed(value) for name, value in fields.items()}


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, dict):
        return value["name"]
    if value in ("true", "false"):
        return value == "true"
    try:
        return int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        return value
