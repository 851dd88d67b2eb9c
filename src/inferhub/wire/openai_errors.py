"""Reads the errors of OpenAI-style upstreams into our error tree.

Called by remote backends with a refused response. What an upstream says is foreign text: it is cleaned,
shortened and freed of secrets here, and a page of HTML never gets through.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from inferhub.core.errors import (
    BackendRefused,
    ContentFiltered,
    ContextOverflow,
    InferHubError,
    UpstreamExhausted,
)
from inferhub.wire.foreign import (
    MIN_SECRET_CHARS,
    NOT_JSON,
    clean_text,
    error_of,
    read_retry_after_s,
    reported,
)

_MAX_WORD = 64
_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]+")
_FILTERED = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}
_STATUSES = {
    ContextOverflow.code: 400,
    **dict.fromkeys(_FILTERED, 400),
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
}
"""What a code means that comes without a status."""
# Servers that name no code, by what they say of a prompt that is too long:
_TOO_LONG = re.compile(
    r"maximum (context|model|prompt) length"  # vLLM, DeepSeek, OpenRouter, Mistral, SGLang, xAI
    r"|model's context length"  # SGLang
    r"|available context size"  # llama.cpp: exceed_context_size_error
    r"|context length (exceeded|of only)|exceeds? (the )?context (length|window)"  # Ollama, LM Studio
    r"|prompt (is )?too long"  # Ollama, Fireworks
    r"|inputs`? (tokens \+ `?max_new_tokens|must have less than)",  # Text Generation Inference
    re.IGNORECASE,
)


class _Problem(msgspec.Struct):
    """What an upstream's error says, after cleaning."""

    message: str | None = None
    param: str | None = None
    code: str | None = None
    is_flagged: bool = False
    """OpenRouter's way to say that a filter refused the prompt, with HTTP 403."""


def read_error(
    status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()
) -> InferHubError:
    """The error that a response with this status means. `headers` must look up names in lower case."""
    return _judge(status, _read_problem(body, secrets), read_retry_after_s(headers))


def _judge(status: int, problem: _Problem, retry_after_s: float | None) -> InferHubError:
    if status == 403 and problem.is_flagged:
        return ContentFiltered(problem.message)
    if status == 429 and problem.code == "insufficient_quota":
        return UpstreamExhausted(code=problem.code)
    return error_of(status, problem.message or "", retry_after_s, lambda message: _refusal(problem, message))


def _refusal(problem: _Problem, message: str) -> InferHubError:
    """What a request is told that the upstream understood and will refuse again."""
    if problem.code in _FILTERED:
        return ContentFiltered(message, param=problem.param)
    if problem.code == ContextOverflow.code or _TOO_LONG.search(message):
        return ContextOverflow(message, param=problem.param)
    return BackendRefused(message, param=problem.param, code=problem.code)


def read_stream_error(error: Any, secrets: Collection[str] = ()) -> InferHubError:
    """An error object that came inside a successful answer: servers whose head leaves before they look at the
    request send so what others say with a status. It means the same, or one client's long prompts would
    count as the server's failures."""
    problem = _clean({"error": error}, secrets)
    code = error.get("code") if isinstance(error, dict) else None
    status = code if type(code) is int else _STATUSES.get(problem.code or "", 0)
    if 400 <= status < 500 or status in (503, 529):
        return _judge(status, problem, None)
    return reported(problem.message or "")


def _read_problem(body: bytes, secrets: Collection[str]) -> _Problem:
    try:
        return _clean(msgspec.json.decode(body), secrets)
    except NOT_JSON:
        return _Problem()


def _clean(answer: Any, secrets: Collection[str]) -> _Problem:
    """OpenAI's envelope, and the habits beside it: `error` as a string, a flat object, FastAPI's `detail`."""
    if not isinstance(answer, dict):
        return _Problem()
    error = answer.get("error")
    if error is None:
        error = answer if isinstance(answer.get("message"), str) else _first_detail(answer)
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return _Problem()
    message, metadata = error.get("message"), error.get("metadata")
    return _Problem(
        message=clean_text(message, secrets) or None if isinstance(message, str) else None,
        param=_word(error.get("param"), secrets),
        code=_word(error.get("code"), secrets),
        is_flagged=isinstance(metadata, dict) and "flagged_input" in metadata,
    )


def _first_detail(answer: dict[str, Any]) -> Any:
    """FastAPI's `detail`: a text, or a list of what is wrong and where. Mistral wraps it in `message`."""
    message = answer.get("message")
    detail = (message if isinstance(message, dict) else answer).get("detail")
    first = detail[0] if isinstance(detail, list) and detail else None
    if not isinstance(first, dict):
        return detail
    where = first.get("loc")
    steps = [str(step) for step in where if step != "body"] if isinstance(where, list) else []
    return {"message": f"{'.'.join(steps)}: {first.get('msg')}", "param": steps[0] if steps else None}


def _word(value: Any, secrets: Collection[str]) -> str | None:
    """A machine-readable name, or None for anything else (some servers put a number or a phrase there)."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_WORD or not _WORD.fullmatch(value):
        return None
    return None if any(secret in value for secret in secrets if len(secret) >= MIN_SECRET_CHARS) else value
