"""The shape of a `hub.yaml`, as parsed: every key, its limits and its help, once.

The loader validates with it; the JSON Schema for editors and the reference page are made from it.
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from inferhub.core.tenancy import DEFAULT_PROJECT, DEFAULT_TENANT
from inferhub.core.traffic import TRANSIENT, Cause
from inferhub.settings.spec.entry import MAX_SECONDS
from inferhub.settings.spec.entry import Entry as _Entry
from inferhub.settings.spec.entry import count as _count
from inferhub.settings.spec.entry import no_flag as _no_flag
from inferhub.settings.spec.scheduler import SchedulerEntry

MAX_ENTRIES = 1000
MAX_ISSUERS = 20

MAX_TARGETS = 32
MAX_WEIGHT = 1000
MAX_PRIORITY = 9

_NAME_PATTERN = r"^[A-Za-z0-9@][A-Za-z0-9._:/@-]{0,127}$"
Name = Annotated[str, Field(pattern=_NAME_PATTERN)]
_FLAG = WithJsonSchema(
    {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": r"^(\$\{.*\}|os\.environ/.*)$"}]}
)
LabelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{0,62}$")]
NAME_HELP = "1 to 128 letters, digits or `. _ : / @ -`, the first a letter, a digit or `@`"


def _not_empty(value: Any) -> Any:
    """pydantic's own check would also complain about a list whose only entry is wrong."""
    if isinstance(value, list) and not value:
        raise ValueError("empty")
    return value


_SECONDS_SCHEMA = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SECONDS},
        {"type": "string", "pattern": r"^(\$\{.*\}|os\.environ/.*)$"},
    ]
}
Seconds = Annotated[
    float,
    BeforeValidator(_no_flag),
    Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False),
    WithJsonSchema(_SECONDS_SCHEMA),
]
CauseName = Literal["rate_limit", "overload", "timeout", "failure", "context_length", "content_filter"]

MAX_USD = 10_000
USD_DECIMALS = 12
_FLOAT_DIGITS = 15
_USD = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,30})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _usd(value: Any) -> Decimal:
    """Exact: a number is taken by its digits, and refused where a float cannot have kept them all."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("not an amount")
    if isinstance(value, str) and not _USD.fullmatch(value):
        raise ValueError("not an amount")
    try:
        amount = Decimal(value if isinstance(value, str) else repr(value))
    except InvalidOperation as error:
        raise ValueError("not an amount") from error
    if not amount.is_finite() or not 0 <= amount <= MAX_USD:
        raise ValueError("out of range")
    _, digits, exponent = amount.normalize().as_tuple()
    if int(exponent) < -USD_DECIMALS or (isinstance(value, float) and len(digits) > _FLOAT_DIGITS):
        raise ValueError("too many decimals")
    return amount


def _date(value: Any) -> date:
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        raise ValueError("not a date")
    day = date.fromisoformat(value)
    if not date(2000, 1, 1) <= day <= date(2999, 12, 31):
        raise ValueError("out of range")
    return day


_USD_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": MAX_USD},
        {"type": "string", "pattern": r"^([0-9]{1,9}(\.[0-9]{1,12})?|\$\{.*\}|os\.environ/.*)$"},
    ]
}
Usd = Annotated[Decimal, BeforeValidator(_usd), WithJsonSchema(_USD_SCHEMA)]
Day = Annotated[
    date,
    BeforeValidator(_date),
    WithJsonSchema({"type": "string", "pattern": r"^([0-9]{4}-[0-9]{2}-[0-9]{2}|\$\{.*\}|os\.environ/.*)$"}),
]


class ModelEntry(_Entry):
    """One model to serve."""

    name: Name = Field(description=f"What clients ask for: {NAME_HELP}.")
    backend: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Engine or kind of upstream. May be left out where it is plain: weights that end "
        "in `.gguf` mean `llamacpp`, an option `base_url` means `openai_compatible`.",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Name from the weights index, or a path on the worker; none for remote models.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda:[0-9]{1,3})$",
        description="Where it runs: `auto`, `cpu` or `cuda:N`.",
    )
    slots: Annotated[int, Field(ge=0, le=4096), _count(0, 4096)] = Field(
        0,
        description="How many calls run at once; more wait in the queue. 0 leaves the number to the "
        "backend: 4 for engines, 256 for remote models.",
    )
    queue_limit: Annotated[int, Field(ge=0, le=100_000), _count(0, 100_000)] = Field(
        64, description="How many calls may wait; more are refused with 503."
    )
    load: Literal["start", "demand"] | None = Field(
        None,
        description="`start`: loaded before it is offered. `demand`: loaded by its first call. Either may be "
        "let go again while nobody calls it, unless it is `pinned`. Left out, the backend decides: `demand` "
        "for speech and pictures, `start` for the others.",
    )
    pinned: Annotated[bool, _FLAG] = Field(
        False, description="Never let go, neither to make room nor for being idle."
    )
    idle_ttl_s: Seconds | None = Field(
        None,
        description="Let go after so many seconds without a call; the next call loads it again. Replaces the "
        "setting `model_idle_ttl_s`.",
    )
    max_batch: Annotated[int, BeforeValidator(_no_flag), Field(ge=0, le=1024), _count(0, 1024)] = Field(
        0,
        description="Calls that are computed together at most, where the backend can; 1 for none, 0 leaves "
        "the number to the backend.",
    )
    replicas: Annotated[int, BeforeValidator(_no_flag), Field(ge=0, le=1024), _count(0, 1024)] = Field(
        0, description="On how many workers it runs. 0: on every one that fits."
    )
    labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict,
        max_length=16,
        description="Labels that a worker must have to run it, such as `{gpu: h100}`; all workers fit where "
        "there are none.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="The backend's own settings."
    )


class _ModelOrMore(_Entry):
    """An entry of a list that may be written as its model's name alone."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        mapping = handler.resolve_ref_schema(handler(schema))
        mapping["anyOf"] = [{"type": "object"}, {"type": "string", "pattern": _NAME_PATTERN}]
        mapping.pop("type", None)
        return mapping


class TargetEntry(_ModelOrMore):
    """One model that a route leads to; its name alone stands for `{model: NAME}`."""

    model: Name = Field(description="Name of a model above.")
    weight: Annotated[int, BeforeValidator(_no_flag), Field(ge=0, le=MAX_WEIGHT), _count(0, MAX_WEIGHT)] = (
        Field(
            1,
            description="Share of the calls among the targets of its priority. 0 takes none until the others "
            "of its priority cannot.",
        )
    )
    priority: Annotated[
        int, BeforeValidator(_no_flag), Field(ge=0, le=MAX_PRIORITY), _count(0, MAX_PRIORITY)
    ] = Field(
        0,
        description="Lower is asked first; a higher one only where every lower one cannot, or where calls "
        "spill over.",
    )


class FallbackEntry(_ModelOrMore):
    """A model for calls that the targets failed; its name alone stands for `{model: NAME}`."""

    model: Name = Field(description="Name of a model above that is no target of the route.")
    on: Annotated[tuple[CauseName, ...], BeforeValidator(_not_empty)] = Field(
        tuple(cause.value for cause in Cause if cause in TRANSIENT),
        max_length=len(Cause),
        json_schema_extra={"minItems": 1},
        description="What it takes over: any of `rate_limit`, `overload`, `timeout`, `failure`, "
        "`context_length` and `content_filter`. The last two are never taken over unasked.",
    )


class SpillEntry(_Entry):
    """Hybrid serving: leave the preferred targets when they are predicted to answer too late."""

    first_token_s: Seconds = Field(
        description="Objective for the time to the first token, in seconds. A call goes to the next priority "
        "where every target before it is predicted to miss it."
    )
    max_usd_per_hour: Usd | None = Field(
        None,
        description="What the calls of one gateway process that spilled over may cost in any hour; then no "
        "more spill over until an earlier minute has left the hour. Without it there is no cap.",
    )


class RouteEntry(_Entry):
    """A further public name, and where it leads: to one `model`, or to several `targets`."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["model"]}, {"required": ["targets"]}]}
    )

    name: Name = Field(description=f"What clients ask for: {NAME_HELP}.")
    model: Name | None = Field(None, description="Name of the one model that answers.")
    targets: tuple[TargetEntry, ...] = Field(
        (), max_length=MAX_TARGETS, description="The models that answer, instead of `model`."
    )
    fallbacks: tuple[FallbackEntry, ...] = Field(
        (), max_length=MAX_TARGETS, description="Models for calls that these failed, tried in order."
    )
    prefer: Literal["weight", "latency", "cost"] = Field(
        "weight",
        description="How one target of a priority is chosen: by share (`weight`), by predicted time to the "
        "first token (`latency`), or by what the call is expected to cost (`cost`).",
    )
    spill: SpillEntry | None = Field(None, description="When calls go to the next priority early.")
    affinity: Literal["session"] | None = Field(
        None, description="`session`: calls of one session stay with one endpoint while it is well."
    )
    hedge_after_s: Seconds | None = Field(
        None,
        description="Ask a second endpoint where the first has said nothing for this long; the slower one is "
        "cancelled.",
    )
    first_token_timeout_s: Seconds | None = Field(
        None, description="Replaces the setting of the same name for calls of this route."
    )
    idle_timeout_s: Seconds | None = Field(
        None, description="Replaces the setting of the same name for calls of this route."
    )
    request_timeout_s: Seconds | None = Field(
        None, description="Shortens the setting of the same name for calls of this route."
    )
    resume: bool = Field(
        False,
        description="Continue an answer that broke off on another endpoint that can start from given text.",
    )


class PriceEntry(_Entry):
    """What calls of one model cost, in US dollars. What is left out costs nothing."""

    model: Name = Field(
        description="Name of a model above; a call of a route costs what the model costs that answered."
    )
    valid_from: Day | None = Field(
        None,
        alias="from",
        description="First day (`YYYY-MM-DD`, UTC) of this price; not in the past, whose calls are billed "
        "already. Without it the price is valid at once, until a dated one begins.",
    )
    input_per_mtok: Usd | None = Field(None, description="A million tokens of the prompt.")
    cached_input_per_mtok: Usd | None = Field(
        None,
        description="A million tokens of the prompt that were read from a cache; "
        "the price of other input where it is left out.",
    )
    output_per_mtok: Usd | None = Field(None, description="A million tokens of the answer.")
    reasoning_per_mtok: Usd | None = Field(
        None,
        description="A million tokens of thought before it; the price of output where it is left out.",
    )
    per_audio_minute: Usd | None = Field(None, description="A minute of sound, in or out.")
    per_million_characters: Usd | None = Field(None, description="A million characters spoken.")
    per_image: Usd | None = Field(None, description="An image.")
    per_megapixel: Usd | None = Field(None, description="A million pixels of images.")
    per_request: Usd | None = Field(None, description="A call that was answered.")


class IssuerEntry(_Entry):
    """An OpenID Connect provider whose people may sign in with its tokens."""

    issuer: str = Field(
        pattern=r"^https?://[A-Za-z0-9._:\[\]-]{1,253}(/[A-Za-z0-9._~/-]{0,500})?$",
        description="As in the `iss` of its tokens; its keys are found below it.",
    )
    audience: str = Field(min_length=1, max_length=200, description="What `aud` of a token must name.")
    tenant: str = Field(
        DEFAULT_TENANT, pattern=r"^ten_[A-Za-z0-9]{1,60}$", description="Id of the tenant of its people."
    )
    project: str = Field(
        DEFAULT_PROJECT, pattern=r"^prj_[A-Za-z0-9]{1,60}$", description="Id of their project."
    )
    role: Literal["tenant_admin", "enterprise", "free"] | None = Field(
        None, description="Role of everybody with a token; without it only users that an admin has made."
    )


class SpecFile(_Entry):
    """Models, routes, prices, issuers and the scheduler of an InferHub installation (`hub.yaml`)."""

    models: tuple[ModelEntry, ...] = Field(max_length=MAX_ENTRIES, description="The models to serve.")
    routes: tuple[RouteEntry, ...] = Field((), max_length=MAX_ENTRIES, description="Further public names.")
    prices: tuple[PriceEntry, ...] = Field(
        (), max_length=MAX_ENTRIES, description="What calls cost; a model without a price is free."
    )
    issuers: tuple[IssuerEntry, ...] = Field(
        (), max_length=MAX_ISSUERS, description="Whose tokens are accepted beside API keys."
    )
    scheduler: SchedulerEntry = Field(
        default=SchedulerEntry(), description="How endpoints of a model are compared."
    )


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of `hub.yaml`, for editors; published in `docs/reference`."""
    schema = SpecFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "InferHub hub.yaml"}
