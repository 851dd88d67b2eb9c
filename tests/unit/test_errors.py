"""The error tree as drawn, its codes, and what clients see of it."""

from __future__ import annotations

import json

from inferhub.core import errors
from inferhub.core.errors import InferHubError, Invalid, Overloaded, ServingError, Unauthenticated
from inferhub.gateway.problems import MAX_JITTER, envelope, error_headers


def _ours(cls: type[InferHubError]) -> list[type[InferHubError]]:
    """Without what plug-ins, or other tests, derive."""
    return [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]


def _draw(cls: type[InferHubError], prefix: str = "") -> list[str]:
    lines = []
    children = _ours(cls)
    for position, child in enumerate(children):
        is_last = position == len(children) - 1
        lines.append(f"{prefix}{'└── ' if is_last else '├── '}{child.__name__}")
        lines += _draw(child, prefix + ("    " if is_last else "│   "))
    return lines


def _all(cls: type[InferHubError]) -> list[type[InferHubError]]:
    return [cls, *(found for child in _ours(cls) for found in _all(child))]


def test_the_drawing_is_the_tree() -> None:
    drawn = (errors.__doc__ or "").split("InferHubError\n", 1)[1].strip().splitlines()
    assert drawn == [line.strip("\n") for line in _draw(InferHubError)]


def test_codes_are_unique_and_every_class_says_when_to_raise_it() -> None:
    classes = _all(InferHubError)
    assert len({cls.code for cls in classes}) == len(classes)
    assert all(cls.__doc__ and cls().message for cls in classes)


def test_only_serving_errors_are_retryable() -> None:
    assert all(issubclass(cls, ServingError) for cls in _all(InferHubError) if cls.retryable)


def test_envelope_has_all_four_keys_always() -> None:
    assert json.loads(envelope(Invalid("no", param="n", code="x")))["error"] == {
        "message": "no",
        "type": "invalid_request_error",
        "param": "n",
        "code": "x",
    }
    assert set(json.loads(envelope(Overloaded()))["error"]) == {"message", "type", "param", "code"}


def test_messages_lose_control_characters_addresses_and_excess() -> None:
    message = json.loads(envelope(Invalid("a\nb\x1b[31m <obj at 0x7f3a12bc90>" + "y" * 5000)))["error"][
        "message"
    ]
    assert "\n" not in message
    assert "\x1b" not in message
    assert "0x7f3a12bc90" not in message
    assert len(message) <= 2000


def test_headers_say_how_to_go_on() -> None:
    assert (b"www-authenticate", b"Bearer") in error_headers(Unauthenticated())
    headers = dict(error_headers(Overloaded(retry_after_s=0.2)))
    assert headers[b"retry-after"] == b"1"
    # Never earlier than that, and not all clients at once.
    waits_ms = {
        int(dict(error_headers(Overloaded(retry_after_s=0.2)))[b"retry-after-ms"]) for _ in range(200)
    }
    assert min(waits_ms) >= 200
    assert len(waits_ms) > 10
    assert max(waits_ms) <= 200 * MAX_JITTER
    assert b"x-should-retry" not in headers
    assert dict(error_headers(errors.DeadlineExceeded()))[b"x-should-retry"] == b"false"
