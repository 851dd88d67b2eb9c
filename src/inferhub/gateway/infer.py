"""`POST /infer`: one entry for every kind of call. Says which address is meant, and goes on there.

Built by `app` beside the endpoints of the dialects. The answer is that address's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from starlette.types import Scope

from inferhub.core.errors import Invalid, MethodNotAllowed
from inferhub.core.tenancy import Principal
from inferhub.gateway.answer import Exchange
from inferhub.gateway.dialects import dialects
from inferhub.gateway.fleet import Fleet
from inferhub.gateway.forms import parse_form, read_form
from inferhub.gateway.identity import Identity
from inferhub.gateway.payload import is_form, parse_request, read_body
from inferhub.gateway.surface import Asked, InferenceEndpoint
from inferhub.gateway.uploads import Uploads

TASKS: Mapping[str, str] = {
    "asr": "transcription",
    "chat": "chat",
    "completion": "completion",
    "embedding": "embedding",
    "image": "image",
    "llm": "chat",
    "moderation": "moderation",
    "rerank": "rerank",
    "speech": "speech",
    "transcription": "transcription",
    "tts": "speech",
    "vision": "vision",
}
"""What `task` may say → the modality."""

_LIKELIEST = ("chat", *(name for name in dict.fromkeys(TASKS.values()) if name != "chat"))
"""What is meant of all that a model can do."""

_INPUT = {"completion": "prompt", "image": "prompt", "rerank": "query"}
"""Where a text goes in the request of a modality, if not to `input`."""


class InferRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /infer`."""

    input: str | list[Any] | dict[str, Any] | None = None
    """A text, the turns of a conversation, or the whole request of the task."""
    model: str = ""
    task: str | None = None
    """Found out from the model or the input where it is not said."""
    parameters: dict[str, Any] = {}
    """Further fields of the task's own request."""
    stream: bool | None = None


class _Shape(NamedTuple):
    """What `parse_request` reads a body by."""

    request: type[msgspec.Struct]
    check: Callable[[Any], None]


def _check(asked: InferRequest) -> None:
    if asked.input is None and not asked.parameters:
        raise Invalid("'input' is required.", param="input", code="missing_required_parameter")
    if asked.task is not None:
        _modality(asked.task)


def _modality(task: str) -> str:
    if task not in TASKS:
        raise Invalid(f"'task' is {task[:64]!r}; it may be {', '.join(TASKS)}.", param="task")
    return TASKS[task]


_SHAPE = _Shape(InferRequest, _check)


class InferEndpoint:
    """The address. `endpoints` are those of the modalities' own dialects, by modality."""

    def __init__(
        self,
        endpoints: Mapping[str, InferenceEndpoint],
        identity: Identity,
        fleet: Fleet,
        uploads: Uploads,
    ) -> None:
        self._endpoints = endpoints
        self._identity = identity
        self._fleet = fleet
        self._uploads = uploads

    async def __call__(
        self, scope: Scope, headers: dict[bytes, bytes], exchange: Exchange, request_id: str
    ) -> None:
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{scope['method']} is not answered here; use POST.")
        principal = await self._identity.principal(headers)
        if is_form(headers):
            with self._uploads.room(headers):
                asked = await self._read_form(headers, exchange)
                return await self._run(asked, principal, headers, exchange)
        body = await read_body(headers, exchange.receive, exchange.limits)
        asked = self._read_json(body, exchange.limits.max_json_depth)
        return await self._run(asked, principal, headers, exchange)

    async def _run(
        self, asked: Asked, principal: Principal, headers: Mapping[bytes, bytes], exchange: Exchange
    ) -> None:
        await self._endpoints[asked.dialect.modality.name].run(asked, principal, headers, exchange)

    def _read_json(self, body: bytes, max_depth: int) -> Asked:
        said, unknown = parse_request(_SHAPE, body, max_depth)
        if unknown:
            raise Invalid(
                f"'{unknown[0][:64]}' is no parameter here; fields of the task go into 'parameters'.",
                param=unknown[0][:64],
            )
        dialect = dialects()[_modality(said.task) if said.task else self._meant(said)]
        tree = {**said.parameters, **_placed(dialect.modality.name, said.input)}
        for name in ("model", "stream"):
            if getattr(said, name):
                tree[name] = getattr(said, name)
        tree.setdefault("model", "")
        own = msgspec.json.encode(tree)
        request, others = parse_request(dialect, own, max_depth)
        return Asked(dialect, request, own, others)

    async def _read_form(self, headers: dict[bytes, bytes], exchange: Exchange) -> Asked:
        """A form is for the task that its file is for, or that its field `task` names."""
        form = await read_form(headers, exchange.receive, exchange.limits)
        named = next((text for name, text in form.fields if name == "task"), None)
        if named is None:
            named = "vision" if any(file.kind.startswith("image/") for file in form.files) else "asr"
        dialect = dialects()[_modality(named)]
        form = form._replace(fields=[field for field in form.fields if field[0] != "task"])
        request, unknown, body = parse_form(dialect, form)
        return Asked(dialect, request, body, unknown, tuple(form.files))

    def _meant(self, said: InferRequest) -> str:
        """What the model can do, first of all chat; without a model, chat."""
        if not said.model or isinstance(said.input, list):
            return "chat"
        directory = self._fleet.directory()
        offered = {
            capability.modality
            for model in directory.models_of(said.model)
            for endpoint in directory.endpoints.get(model, ())
            for capability in endpoint.model.capabilities
        }
        return min(offered & set(_LIKELIEST), key=_LIKELIEST.index, default="chat")


def _placed(modality: str, given: Any) -> dict[str, Any]:
    """The input where the modality's own request has it."""
    if given is None:
        return {}
    if isinstance(given, dict):
        return given
    if modality == "chat":
        turns = given if isinstance(given, list) else [{"role": "user", "content": given}]
        return {"messages": turns}
    return {_INPUT.get(modality, "input"): given}
