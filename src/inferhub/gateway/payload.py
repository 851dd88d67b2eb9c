"""From bytes on the wire to a checked request struct; every refusal names parameter, value and remedy.

Called by `surface`. Bounded before parsed: size while reading, depth before decoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

import msgspec

from inferhub.core.errors import Invalid, TooLarge, Unsupported, UnsupportedMedia
from inferhub.gateway.limits import GatewayLimits

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

FORM = "multipart/form-data"


class Shape(Protocol):
    """The part of a `Modality` or `Dialect` that says what a request may look like."""

    @property
    def request(self) -> type[msgspec.Struct]: ...

    @property
    def check(self) -> Callable[[Any], None]: ...


class ClientGone(BaseException):
    """The client hung up; there is nobody left to answer.

    A `BaseException`, like a cancellation: no `except Exception` on the way may take it for a failed call.
    """


async def read_body(
    headers: Mapping[bytes, bytes], receive: Receive, limits: GatewayLimits, *, accepts_form: bool = False
) -> bytes:
    """The whole body. Raises before reading when the headers already say that it is unwelcome."""
    is_upload = accepts_form and is_form(headers)
    if not is_upload:
        _check_json(headers)
    limit = max(limits.max_body_bytes, limits.max_upload_bytes) if is_upload else limits.max_body_bytes
    pieces = [piece async for piece in body_pieces(headers, receive, limit)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def body_pieces(headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives, at least one piece. Raises `TooLarge` before `limit` bytes are passed."""
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if encoding != b"identity":
        raise UnsupportedMedia(
            f"Content-Encoding {encoding.decode('latin-1')!r} is not accepted; send the body as it is."
        )
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"The body has {int(declared)} bytes; at most {limit} are accepted.")
    size = 0
    # No timer here: `protocol` has one from the first byte of the head to the last of the body.
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise TooLarge(f"The body has more than {limit} bytes, the most accepted.")
        yield piece
        if not message.get("more_body", False):
            return


def is_form(headers: Mapping[bytes, bytes]) -> bool:
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == FORM.encode()


def _check_json(headers: Mapping[bytes, bytes]) -> None:
    """JSON by name or by silence. A form type is what `curl -d` sends when a header was forgotten."""
    media = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
    if media != b"application/json" and not media.endswith(b"+json"):
        raise UnsupportedMedia(
            f"Content-Type is {media.decode('latin-1')!r}; send 'Content-Type: application/json'."
        )


def read_object(body: bytes, max_depth: int) -> dict[str, Any]:
    """The JSON object that a body must be. Raises `Invalid` and nothing else."""
    check_depth(body, max_depth)
    tree = _load(body)
    if not isinstance(tree, dict):
        raise Invalid(f"The body must be a JSON object, not {_kind(tree)}.", code="invalid_json")
    if _SURROGATE.search(body):
        _check_text(body)
    return tree


def _check_text(body: bytes) -> None:
    """Raises `Invalid` for half of a surrogate pair, which is no character: no answer could repeat it."""
    try:
        msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise Invalid(
            "The body is not valid JSON: it has half of a surrogate pair, which is no character.",
            code="invalid_json",
        ) from error


def parse_request(shape: Shape, body: bytes, max_depth: int) -> tuple[Any, tuple[str, ...]]:
    """(request struct, unknown top-level names). Raises `Invalid` and nothing else."""
    tree = read_object(body, max_depth)
    known = shape.request.__struct_encode_fields__
    unknown = tuple(name for name in tree if name not in known)
    if unknown:
        check_unknown(unknown, known)
    try:
        request = msgspec.json.decode(body, type=shape.request)
    except msgspec.ValidationError as error:
        raise explain(error, tree) from error
    except msgspec.DecodeError as error:
        raise Invalid(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    shape.check(request)
    return request, unknown


_OPERATORS = frozenset({
    "api_base", "api_key", "api_type", "api_version", "base_url", "client_id", "client_secret",
    "custom_llm_provider", "default_headers", "default_query", "extra_body", "extra_headers", "extra_query",
    "headers", "http_client", "litellm_credential_name", "litellm_params", "organization", "password",
    "proxies", "proxy", "ssl_verify", "tenant_id", "username",
    # Other models than the one that was asked for, allowed and reserved for; and tools that cost by the use.
    "fallbacks", "model_list", "models", "plugins", "preset", "route",
})  # fmt: skip
_OPERATORS_PREFIXES = ("aws_", "azure_", "gcp_", "vertex_", "watsonx_")
_OTHER_LIMITS = frozenset({"max_length", "max_new_tokens", "max_output_tokens", "n_predict", "num_predict"})
"""Of the answer's length, under names that some servers obey more than the dialect's own."""


def check_unknown(names: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raises `Unsupported`. Unknown parameters are passed on to remote models, and an upstream that is itself
    a gateway would obey these: it would send its keys to an address that the client chose, ask a model that
    the caller may not call, or answer longer than the caller's limits have room for."""
    for name in names:
        folded = name.casefold()
        if folded in _OPERATORS or folded.startswith(_OPERATORS_PREFIXES):
            raise Unsupported(
                f"'{name[:64]}' is not taken from a request: where models are and how they are asked is set "
                "by the operator.",
                param=name[:64],
            )
        # Some servers read names whatever their case, and would take this one for the other.
        meant = folded if folded in known else None
        if folded in _OTHER_LIMITS:
            meant = next((limit for limit in known if limit.startswith("max_")), None)
        if meant is not None:
            raise Unsupported(f"'{name[:64]}' is no parameter here; use '{meant}'.", param=name[:64])


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def check_depth(body: bytes, limit: int) -> None:
    """Refuse deep nesting before any parser recurses. The first line settles nearly every body."""
    if body.count(b"{") + body.count(b"[") <= limit:
        return
    depth = deepest = 0
    for byte in _STRING.sub(b"", body):
        if byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > limit:
                raise Invalid(f"The body nests deeper than {limit} levels.", code="too_deep")
        elif byte in b"}]":
            depth -= 1


def _load(body: bytes) -> Any:
    if not body.strip():
        raise Invalid("The body is empty; send a JSON object.", code="invalid_json")
    try:
        return _DECODER.decode(body.decode())
    except UnicodeDecodeError as error:
        raise Invalid(
            f"The body is not valid UTF-8: byte {error.start} cannot be decoded.", code="invalid_json"
        ) from error
    except json.JSONDecodeError as error:
        raise Invalid(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            code="invalid_json",
        ) from error
    except ValueError as error:
        raise Invalid("The body is not valid JSON: a number is too long.", code="invalid_json") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Invalid(f"The name {twice!r} appears twice in one object.", param=twice, code="duplicate_name")
    return found


def _refuse_constant(name: str) -> Any:
    raise Invalid(f"The body is not valid JSON: {name} is not a JSON number.", code="invalid_json")


# Made once: json.loads would build a new one for every body.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`$")
_STEP = re.compile(r"[^.\[\]]+")


def explain(error: msgspec.ValidationError, tree: Any) -> Invalid:
    """A decoder's complaint as a sentence: the parameter's path, the offending value, what is allowed."""
    match = _PLACE.match(str(error))
    what, path = (match["what"], match["path"] or "") if match else (str(error), "")
    # `metadata[...]` is any value of a mapping: what can be named is the mapping.
    path = path.partition("[...]")[0]
    missing = _MISSING.match(what)
    if missing:
        param = f"{path}.{missing['field']}" if path else missing["field"]
        return Invalid(f"'{param}' is required.", param=param, code="missing_required_parameter")
    value = _shown(_at(tree, path))
    is_type = what.startswith("Expected") and ", got" in what
    wanted = what.replace("`", "").partition(", got")[0]
    return Invalid(
        f"Invalid value for '{path}': {value}. {wanted}.",
        param=path or None,
        code="invalid_type" if is_type else "invalid_value",
    )


def _at(tree: Any, path: str) -> Any:
    """The value at `messages[0].content`, or the nearest one above it."""
    for step in _STEP.findall(path):
        try:
            tree = tree[int(step)] if isinstance(tree, list) else tree[step]
        except (KeyError, IndexError, ValueError, TypeError):
            return tree
    return tree


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")
