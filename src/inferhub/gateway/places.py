"""Where an error points, in the client's own request: the pipeline knows only what that was translated to.

Used by `surface` and `responses` for dialects that are translated. Reads nothing unless a call failed over a
picture, a file or a sound, which both requests hold as the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from inferhub.core.call import Call, Emit, Handler
from inferhub.core.errors import InferHubError
from inferhub.gateway.dialects.base import Dialect

Path = tuple[str | int, ...]

_STEP = re.compile(r"\[(\d+)\]|\.?([A-Za-z_]\w*)")
_HOLDERS = frozenset({"url", "data", "image_url", "file_url", "file_data"})
"""Fields that hold one, in any dialect."""


def placing(handler: Handler, dialect: Dialect, body: bytes) -> Handler:
    """The handler with errors that point into `body`, a request of `dialect`."""
    if dialect.translate is None:
        return handler

    async def handle(call: Call, emit: Emit) -> None:
        try:
            await handler(call, emit)
        except InferHubError as error:
            _place(error, call.body, dialect, body)
            raise

    return handle


def _place(error: InferHubError, translated: bytes, dialect: Dialect, body: bytes) -> None:
    param = error.param or ""
    path = tuple(int(at) if at else name for at, name in _STEP.findall(param))
    if not path or path[-1] not in _HOLDERS:
        return
    held = dict(_held(msgspec.json.decode(translated)))
    if path not in held:
        return
    same = [other for other, text in held.items() if text == held[path]]
    asked = msgspec.json.decode(body)
    own = [other for other, text in _held(asked) if _is_same(text, held[path])]
    # From the end: what a client did not send itself stands in front of what it did.
    back = len(same) - same.index(path)
    if back <= len(own):
        placed = _written(own[-back], is_dotted=dialect.is_dotted)
    else:
        placed = "previous_response_id" if asked.get("previous_response_id") else _root(asked)
    error.message = error.message.replace(f"'{param}'", f"'{placed}'")
    error.param = placed


def _held(tree: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every text in such a field, in the order of the request. As deep as the door let the request be."""
    if isinstance(tree, list):
        for at, item in enumerate(tree):
            yield from _held(item, (*path, at))
    elif isinstance(tree, dict):
        for name, value in tree.items():
            if isinstance(value, str):
                if name in _HOLDERS:
                    yield (*path, name), value
            elif not path or name != "input":
                # Below the top it is what a tool was asked, which is nobody's picture.
                yield from _held(value, (*path, name))


def _is_same(text: str, url: str) -> bool:
    """Also where one side has the bare base64 of the other's `data:` URL."""
    return text == url or (url[:5].lower() == "data:" and url.partition(",")[2] == text)


def _written(path: Path, *, is_dotted: bool) -> str:
    steps = (f"[{step}]" if isinstance(step, int) and not is_dotted else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def _root(asked: Any) -> str:
    return "input" if "input" in asked else "messages"
