"""What every remote backend lets its operator say (address, keys, limits of time), checked.

Backends extend `RemoteOptions`. Nothing here is ever taken from a request, and no message or representation
holds a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from inferhub.backends.credentials import MAX_KEYS, KeyOptions, is_key
from inferhub.core.call import Delta
from inferhub.core.errors import InferHubError
from inferhub.core.models import ModelSpec

_Seconds = Annotated[float, Meta(gt=0, le=3600)]
_KEY_OPTIONS = ("api_key", "api_keys", "api_key_file")


class RemoteOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where the model is and how it is asked."""

    needs_key: ClassVar[bool] = True

    base_url: str | None = None
    """`http://host[:port]` or `https://…`. Without a path, the API's version is added; a path is used as it
    stands."""
    upstream_model: str | None = None
    """What the upstream calls the model; default: the model's own name."""
    api_key: str | None = None
    """Default: the environment variable that the vendor names in its documents."""
    api_keys: Annotated[list[str | KeyOptions], Meta(min_length=1, max_length=MAX_KEYS)] | None = None
    """Several keys, used in turn; each may have limits of its own."""
    api_key_file: str | None = None
    """A file with one key a line, read again when it changes."""
    connect_timeout_s: _Seconds = 5
    headers_timeout_s: _Seconds = 60
    """Until the head of a stream, of vectors or of a count."""
    answer_timeout_s: _Seconds = 600
    """Until the head of a whole answer, which an upstream sends only when it has finished thinking."""
    max_connections: Annotated[int, Meta(ge=1, le=65536)] = 512

    def __post_init__(self) -> None:
        if self.base_url is not None:
            _check_base_url(self.base_url)
        given = sum(getattr(self, name) is not None for name in _KEY_OPTIONS)
        if given > 1:
            raise ValueError("only one of 'api_key', 'api_keys' and 'api_key_file' may be given")
        if self.needs_key and not given:
            raise ValueError("one of 'api_key', 'api_keys' and 'api_key_file' must be given")
        for place, key in enumerate(self.keys, 1):
            if not is_key(key.key):
                which = "'api_key'" if self.api_keys is None else f"key {place} of 'api_keys'"
                raise ValueError(f"{which} is empty or has characters that a header cannot carry")

    @property
    def keys(self) -> list[KeyOptions]:
        given = self.api_keys or () if self.api_key is None else [self.api_key]
        return [key if isinstance(key, KeyOptions) else KeyOptions(key=key) for key in given]

    def __repr__(self) -> str:
        """Without what may be secret, for logs and tracebacks."""
        return f"{type(self).__name__}(base_url={self.base_url!r}, upstream_model={self.upstream_model!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("base_url", self.base_url), ("upstream_model", self.upstream_model)]


def has_keys(spec: ModelSpec) -> bool:
    """Whether the spec itself says with which keys."""
    return any(spec.options.get(name) for name in _KEY_OPTIONS)


def endpoint_base(base_url: str, version: str = "v1") -> str:
    """What paths such as `/chat/completions` are appended to."""
    base = base_url.rstrip("/")
    return base if urlsplit(base).path else f"{base}/{version}"


def piecewise(deltas: Iterable[Delta]) -> Iterator[Delta]:
    """What one piece of the network brought: each but the last says that another one is here already."""
    last: Delta | None = None
    try:
        for delta in deltas:
            if last is not None:
                yield Delta(last.payload, last.raw, more=True)
            last = delta
    except InferHubError:
        # What came before the fault was said.
        if last is not None:
            yield last
        raise
    if last is not None:
        yield last


def _check_base_url(base_url: str) -> None:
    """Never echoes the address: an operator may have put a password into it."""
    try:
        url = urlsplit(base_url)
        is_sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_sound = False
    if not is_sound or not base_url.isprintable() or " " in base_url or "\\" in base_url:
        raise ValueError("'base_url' must be an http:// or https:// address")
    if url.username is not None or url.password is not None:
        raise ValueError("'base_url' must not hold credentials; a key has an option of its own")
    if url.query or url.fragment:
        raise ValueError("'base_url' must end with its path, without '?' and '#'")
