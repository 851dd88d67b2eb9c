"""From a `multipart/form-data` body to fields and files, bounded while it arrives.

Called by `surface` for dialects with files. Keeps nothing on disk; what a file is, its bytes say.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from inferhub.core.call import Media
from inferhub.core.errors import Invalid, TooLarge
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.payload import FORM, Receive, Shape, body_pieces, check_depth, check_unknown, explain
from inferhub.media import sniff
from inferhub.modalities.base import FileField

MAX_PARTS = 128
MAX_FIELDS_BYTES = 1024 * 1024
"""All fields that are no files, and all heads, together."""
_MAX_NAME_CHARS = 128
_MAX_OBJECT_DEPTH = 16
"""Of a field that is an object itself."""
_HARMFUL = re.compile(r"[^A-Za-z0-9._ -]")
_CONTAINERS = frozenset({"video/mp4", "video/webm"})
"""That hold sound as well; which, only a decoder can tell."""

# Its line for each broken form says no more than our answer, and is as long as clients like it often.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class FormShape(Shape, Protocol):
    """The part of a `Dialect` that says what a form may look like."""

    @property
    def files(self) -> Mapping[str, FileField]: ...


class Form(NamedTuple):
    """What came, in the order in which it came. Names without `[]`."""

    fields: Sequence[tuple[str, str]]
    files: Sequence[Media]


async def read_form(headers: Mapping[bytes, bytes], receive: Receive, limits: GatewayLimits) -> Form:
    """The whole form. Raises `Invalid` for a broken one, `TooLarge` as soon as too much of it has come."""
    _, options = parse_options_header(headers[b"content-type"])
    boundary = options.get(b"boundary")
    if not boundary:
        raise Invalid(f"Content-Type {FORM!r} has no boundary; let the HTTP client write it.")
    parts = _Parts(limits.max_upload_bytes)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        async for piece in body_pieces(headers, receive, limits.max_upload_bytes + MAX_FIELDS_BYTES):
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise Invalid(f"The form cannot be read: {error}.", code="invalid_form") from error
    if not parts.has_ended:
        raise Invalid("The form breaks off before its last boundary.", code="invalid_form")
    return Form(parts.fields, parts.files)


class _Parts:
    """What the parser's callbacks collect, and where they refuse too much of it."""

    def __init__(self, max_file_bytes: int) -> None:
        self.fields: list[tuple[str, str]] = []
        self.files: list[Media] = []
        self.has_ended = False
        self._max_file_bytes = max_file_bytes
        self._count = 0
        self._small_bytes = 0
        self._start()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._start,
            "on_header_field": lambda data, start, end: self._head(self._header, data[start:end]),
            "on_header_value": lambda data, start, end: self._head(self._value, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_head,
            "on_part_data": lambda data, start, end: self._more(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._end_all,
        }

    def _start(self) -> None:
        self._header = bytearray()
        self._value = bytearray()
        self._disposition: Mapping[bytes, bytes] = {}
        self._body = bytearray()

    def _head(self, into: bytearray, piece: bytes) -> None:
        self._count_small(len(piece))
        into.extend(piece)

    def _end_header(self) -> None:
        if bytes(self._header).strip().lower() == b"content-disposition":
            _, self._disposition = parse_options_header(bytes(self._value))
        self._header, self._value = bytearray(), bytearray()

    def _end_head(self) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise Invalid(f"The form has more than {MAX_PARTS} parts.", code="invalid_form")
        if not self._disposition.get(b"name"):
            raise Invalid("A part of the form has no name.", code="invalid_form")

    def _more(self, piece: bytes) -> None:
        if b"filename" not in self._disposition:
            self._count_small(len(piece))
        elif len(self._body) + len(piece) > self._max_file_bytes:
            name = _text(self._disposition[b"name"], "name")[:64]
            raise TooLarge(
                f"The file '{name}' has more than {self._max_file_bytes} bytes, the most accepted.",
                param=name,
                code="file_too_large",
            )
        self._body.extend(piece)

    def _end(self) -> None:
        name = _text(self._disposition[b"name"], "name").removesuffix("[]")
        file_name = self._disposition.get(b"filename")
        if file_name is None:
            self.fields.append((name, _text(bytes(self._body), name)))
        else:
            data = bytes(self._body)
            self.files.append(Media(name, data, sniff(data) or "", _harmless(file_name)))
        self._start()

    def _end_all(self) -> None:
        self.has_ended = True

    def _count_small(self, size: int) -> None:
        self._small_bytes += size
        if self._small_bytes > MAX_FIELDS_BYTES:
            raise TooLarge(f"The fields of the form have more than {MAX_FIELDS_BYTES} bytes together.")


def parse_form(shape: FormShape, form: Form) -> tuple[Any, tuple[str, ...], bytes]:
    """(request struct, unknown names, JSON of what was sent). Raises `Invalid` and nothing else.

    Files are checked against the shape: which there may be, how many, and what they hold.
    """
    _check_files(shape.files, form.files)
    tree = _tree(shape.request, form.fields)
    known = shape.request.__struct_encode_fields__
    unknown = tuple(name for name in tree if name not in known)
    if unknown:
        check_unknown(unknown, known)
    try:
        request = msgspec.convert(tree, shape.request, strict=False)
    except msgspec.ValidationError as error:
        raise explain(error, tree) from error
    shape.check(request)
    # Of the struct only what it declares: a client may call a field `__class__`.
    sent = {name: getattr(request, name) if name in known else value for name, value in tree.items()}
    return request, unknown, msgspec.json.encode(sent)


def _tree(request: type[msgspec.Struct], fields: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The fields as JSON would have them: lists where the struct has lists, objects where a text is one."""
    kinds = {field.encode_name: field.type for field in _struct(request).fields}
    tree: dict[str, Any] = {}
    for name, text in fields:
        kind = kinds.get(name)
        if _takes(kind, msgspec.inspect.ListType):
            tree.setdefault(name, []).append(text)
        elif name in tree:
            raise Invalid(f"'{name[:64]}' appears twice in the form.", param=name[:64], code="duplicate_name")
        elif text.startswith("{") and _takes(kind, msgspec.inspect.StructType, msgspec.inspect.DictType):
            tree[name] = _object(name, text)
        elif text or _takes(kind, msgspec.inspect.StrType):
            tree[name] = text
    return tree


def _struct(request: type[msgspec.Struct]) -> msgspec.inspect.StructType:
    info = msgspec.inspect.type_info(request)
    assert isinstance(info, msgspec.inspect.StructType)  # noqa: S101 - requests are structs
    return info


def _takes(kind: msgspec.inspect.Type | None, *wanted: type[msgspec.inspect.Type]) -> bool:
    kinds = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
    return any(isinstance(one, wanted) for one in kinds)


def _object(name: str, text: str) -> Any:
    check_depth(text.encode(), _MAX_OBJECT_DEPTH)
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Invalid(
            f"'{name}' is not a valid JSON object: {error}.", param=name, code="invalid_json"
        ) from error


def _check_files(allowed: Mapping[str, FileField], files: Sequence[Media]) -> None:
    for name, field in allowed.items():
        found = [file for file in files if file.field == name]
        if field.required and not found:
            raise Invalid(
                f"'{name}' is required: send it as a file of the form.",
                param=name,
                code="missing_required_parameter",
            )
        if len(found) > field.most:
            raise Invalid(f"'{name}' is there {len(found)} times; at most {field.most} may be.", param=name)
    for file in files:
        wanted = allowed.get(file.field)
        if wanted is None:
            raise Invalid(
                f"'{file.field[:64]}' is no file that this address takes; it takes {', '.join(allowed)}.",
                param=file.field[:64],
            )
        _check_content(file, wanted)


def _check_content(file: Media, wanted: FileField) -> None:
    if not file.data:
        raise Invalid(f"The file '{file.field}' is empty.", param=file.field, code="empty_file")
    is_container = wanted.holds == "audio" and file.kind in _CONTAINERS
    if not is_container and not file.kind.startswith(f"{wanted.holds}/"):
        what = f"it holds {file.kind}" if file.kind else "its content is of no known kind"
        raise Invalid(
            f"The file '{file.field}' is no {wanted.holds}: {what}. Its name does not matter.",
            param=file.field,
            code=f"invalid_{wanted.holds}",
        )


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"'{name[:64]}' is not valid UTF-8.", param=name[:64], code="invalid_form") from error


def _harmless(file_name: bytes) -> str:
    """Letters that mean nothing to any shell, header or path."""
    base = file_name.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return _HARMFUL.sub("_", base)[-_MAX_NAME_CHARS:].lstrip(". ")
