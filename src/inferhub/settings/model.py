"""Every setting of a process: its name, default, limits and help, once.

The loader fills it, `config explain` and the reference page print it, assembly hands the values on.
A setting that nothing reads does not belong here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from platformdirs import user_cache_path, user_data_path
from pydantic import Field, ValidationInfo, field_validator, model_validator

from inferhub.settings.fleet import FleetSettings
from inferhub.settings.types import (
    EgressEntry,
    ModalityName,
    Port,
    Seconds,
    SecondsOrZero,
    Secret,
)


def _beside_catalog(values: dict[str, Any], file: str) -> str:
    """A database that is there anyway is shared by all gateways; a file is not."""
    catalog_url = str(values.get("catalog_url", ""))
    if catalog_url.startswith("postgresql://"):
        return catalog_url
    return f"sqlite:///{values.get('data_dir', '.')}/{file}"


class Settings(FleetSettings):
    """How one process runs. Frozen; `settings.loader` is the only maker outside tests."""

    config: Path | None = Field(
        None,
        description="Settings file to read instead of `inferhub.toml` in the working directory. "
        "Flag or environment only.",
    )

    # --- where it listens -------------------------------------------------------------------------
    host: str = Field("127.0.0.1", min_length=1, description="Address the gateway listens on.")
    port: Port = Field(8000, description="Port the gateway listens on; 0 takes any free one.")
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Address `/metrics` listens on.")
    metrics_port: Port = Field(9464, description="Port of `/metrics`; 0 takes any free one.")

    # --- where it keeps things --------------------------------------------------------------------
    data_dir: Path = Field(
        default_factory=lambda: user_data_path("inferhub", appauthor=False),
        description="Folder of the catalog and of the pepper. Back it up.",
        json_schema_extra={"default_text": "the user's data folder, `inferhub` inside"},
    )
    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("inferhub", appauthor=False),
        description="Folder of the weights. May be deleted; it fills again.",
        json_schema_extra={"default_text": "the user's cache folder, `inferhub` inside"},
    )
    catalog_url: str = Field(
        default_factory=lambda values: f"sqlite:///{values.get('data_dir', '.')}/catalog.db",
        min_length=1,
        description="Database of tenants, keys, limits, the audit log and the applied spec. "
        "`sqlite:///ABSOLUTE/PATH`, `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.",
        json_schema_extra={"default_text": "`sqlite:///DATA_DIR/catalog.db`"},
    )
    counters_url: str = Field(
        default_factory=lambda values: f"sqlite:///{values.get('data_dir', '.')}/counters.db",
        min_length=1,
        description="Where limits and budgets are counted; gateways that share limits share it. `memory://` "
        "(one process, forgotten with it), `sqlite:///ABSOLUTE/PATH` (one machine), "
        "`redis://USER:PASSWORD@HOST:PORT/DATABASE` (`rediss://` for TLS).",
        json_schema_extra={"default_text": "`sqlite:///DATA_DIR/counters.db`"},
    )
    cache_url: str = Field(
        default_factory=lambda values: f"sqlite:///{values.get('data_dir', '.')}/answers.db",
        min_length=1,
        description="Where answers are kept, sealed, for the cache and for `Idempotency-Key`; gateways that "
        "share answers share it. `memory://` (one process, forgotten with it), "
        "`sqlite:///ABSOLUTE/PATH` (one machine), `redis://USER:PASSWORD@HOST:PORT/DATABASE` (`rediss://` "
        "for TLS).",
        json_schema_extra={"default_text": "`sqlite:///DATA_DIR/answers.db`"},
    )
    usage_url: str = Field(
        default_factory=lambda values: f"sqlite:///{values.get('data_dir', '.')}/usage.db",
        min_length=1,
        description="Database of the usage: who used how much, and what it cost. "
        "`sqlite:///ABSOLUTE/PATH`, `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, "
        "`clickhouse://USER:PASSWORD@HOST:PORT/DATABASE` (`clickhouses://` for TLS).",
        json_schema_extra={"default_text": "`sqlite:///DATA_DIR/usage.db`"},
    )
    responses_url: str = Field(
        default_factory=lambda values: _beside_catalog(values, "responses.db"),
        min_length=1,
        description="Database of the responses that tenants keep, sealed; gateways that share responses "
        "share it. `sqlite:///ABSOLUTE/PATH` (one machine), `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.",
        json_schema_extra={
            "default_text": "`catalog_url` where that is PostgreSQL, else `sqlite:///DATA_DIR/responses.db`"
        },
    )
    blobs_url: str = Field(
        default_factory=lambda values: f"file://{Path(values.get('data_dir', '.')).absolute()}/blobs",
        min_length=1,
        description="Where pictures lie that answers give as an address. `file:///ABSOLUTE/PATH` (one "
        "machine), `s3://KEY:SECRET@BUCKET/PREFIX?endpoint=URL&region=NAME`; without `KEY:SECRET@`, "
        "where the tools of AWS find theirs.",
        json_schema_extra={"default_text": "`file:///DATA_DIR/blobs`"},
    )
    events_url: str | None = Field(
        None,
        min_length=1,
        description="Stream of what happens, for other systems: `kafka://HOST:PORT[,HOST:PORT][?OPTION=VALUE]`.",
    )
    spec_file: Path | None = Field(
        None,
        description="The `hub.yaml` to serve. Without it the applied spec of the catalog is served, "
        "and on a new installation the built-in one.",
    )
    weights_mirror: str | None = Field(
        None,
        description="Address or folder that is asked for weights before their usual place; "
        "it holds files named by their sha256.",
    )

    # --- secrets ----------------------------------------------------------------------------------
    pepper: Secret | None = Field(
        None,
        description="Secret that API keys are hashed under; changing it invalidates every key.",
        json_schema_extra={"default_text": "read from `DATA_DIR/pepper`, made at the first start"},
    )
    worker_token: Secret | None = Field(
        None, description="Secret shared by gateway and workers; required of every call when it is set."
    )

    # --- what it says -----------------------------------------------------------------------------
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe message that is logged."
    )
    log_format: Literal["json", "text"] = Field(
        "json", description="One JSON object a line, or lines for people."
    )
    color: Literal["auto", "always", "never"] = Field(
        "auto", description="Colours in the terminal; `auto` means when it is one."
    )
    loop_lag_warn_s: Seconds = Field(
        0.25, description="Log a warning when the event loop was blocked for longer."
    )

    # --- what it accepts --------------------------------------------------------------------------
    max_body_bytes: int = Field(
        16 * 1024**2, ge=1024, le=2 * 1024**3, description="Largest request body; larger ones get 413."
    )
    max_upload_bytes: int = Field(
        25 * 1024**2,
        ge=1024,
        le=2 * 1024**3,
        description="Largest file in a form, such as a recording or a picture, and most of all files of one "
        "request together; larger ones get 413.",
    )
    max_uploads_bytes: int = Field(
        256 * 1024**2,
        ge=1024,
        le=2**40,
        description="Most of all files that a gateway process holds at once, from the upload to the end of "
        "the answer; beyond it uploads are refused with 503. Memory for three times as much is needed.",
    )
    max_json_depth: int = Field(
        64, ge=4, le=512, description="Deepest nesting of a JSON body, checked before it is parsed."
    )
    max_header_bytes: int = Field(
        32 * 1024, ge=1024, le=1024**2, description="Total size of a request's headers."
    )
    max_headers: int = Field(100, ge=8, le=1000, description="Number of headers of a request.")
    max_target_bytes: int = Field(
        8 * 1024, ge=256, le=64 * 1024, description="Length of a request's path and query."
    )
    max_inflight: int = Field(
        1152,
        ge=1,
        le=1_000_000,
        description="Inference calls at once; more are refused with 503, those that may come later first.",
    )
    max_sockets: int = Field(
        1024, ge=1, le=1_000_000, description="WebSockets open at once; more are refused with 503."
    )
    max_socket_message_bytes: int = Field(
        16 * 1024**2,
        ge=1024,
        le=256 * 1024**2,
        description="Largest message of a WebSocket; a larger one closes it with the code 1009.",
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins whose web pages may call the API; `*` allows all."
    )

    # --- how usage is written down ----------------------------------------------------------------
    spool_dir: Path = Field(
        default_factory=lambda values: Path(values.get("data_dir", ".")) / "spool",
        description="Folder of the ledger's write-ahead files, on a disk of this machine. Usage stays here "
        "until the stores behind it have it.",
        json_schema_extra={"default_text": "`DATA_DIR/spool`"},
    )
    spool_max_bytes: int = Field(
        1024**3,
        ge=16 * 1024**2,
        le=1024**4,
        description="Most usage that may wait for the stores, per process; beyond it new calls are refused "
        "with 503. About a million calls fit into 1 GiB.",
    )
    spool_fsync: bool = Field(
        False,
        description="Wait for the disk before each call begins and after it ended, so that a power failure "
        "loses no usage either. A killed process never loses any.",
    )

    # --- what it keeps for its callers ------------------------------------------------------------
    responses_ttl_s: Annotated[float, Field(gt=0, le=366 * 86_400)] = Field(
        30 * 86_400, description="How long a stored response can be read and continued."
    )
    responses_max_bytes: int = Field(
        8 * 1024**3,
        ge=16 * 1024**2,
        le=1024**5,
        description="Most that `responses_url` may hold; beyond it the oldest responses of whoever stores "
        "most leave first.",
    )

    blobs_ttl_s: Annotated[float, Field(gt=0, le=7 * 86_400)] = Field(
        3600, description="How long the address of a picture is good; then the picture is deleted."
    )
    blobs_max_bytes: int = Field(
        1024**3,
        ge=16 * 1024**2,
        le=1024**5,
        description="Most that `blobs_url` may hold; beyond it the oldest pictures leave first.",
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[A-Za-z0-9.\-:\[\]]{1,255}(/[A-Za-z0-9._~/-]*)?$",
        description="Where clients reach this server, such as `https://hub.example.com`, for the addresses "
        "of pictures; without it, the `Host` that they name. Set it behind a proxy with TLS.",
    )

    # --- what it fetches --------------------------------------------------------------------------
    egress_allow: tuple[EgressEntry, ...] = Field(
        (),
        description="Internal hosts that a URL of a tenant or a request may lead to, such as the receiver "
        "of a webhook; without it only the public internet.",
    )

    # --- what it answers twice --------------------------------------------------------------------
    cache_memory_bytes: int = Field(
        64 * 1024**2,
        ge=1024**2,
        le=1024**4,
        description="Memory of a gateway process for answers, in front of `cache_url`.",
    )
    cache_ttl_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = Field(
        3600, description="How long an answer of a model is answered again from the cache."
    )
    semantic_cache_model: str | None = Field(
        None,
        min_length=1,
        description="Embedding model that recognises a question in other words, for requests with "
        "`x-inferhub-cache: semantic`; without it they are refused. Needs the package `numpy`.",
    )
    semantic_cache_threshold: float = Field(
        0.95,
        ge=0.5,
        le=1,
        description="Least similarity of two questions that get one answer. The default is for the built-in "
        "embedding model; `docs/explanation/cache.md` says how often it errs.",
    )

    # --- how limits are shared --------------------------------------------------------------------
    counters_timeout_s: Seconds = Field(
        0.05,
        description="Longest wait for the counters behind limits and budgets; then this process counts for "
        "itself until they answer again. Counters in a file of this machine are waited for 2 s at least.",
    )
    gateways_expected: int = Field(
        1,
        ge=1,
        le=10_000,
        description="Gateway processes that share limits. While the counters are gone, each grants the "
        "whole part of limit / number, so that together they never grant more than the limit.",
    )

    # --- how long it waits ------------------------------------------------------------------------
    request_timeout_s: Seconds = Field(600, description="Whole time of a call, queueing included.")
    first_token_timeout_s: Seconds = Field(
        120, description="From the start of a call to the first piece of its answer."
    )
    idle_timeout_s: Seconds = Field(60, description="Longest silence between two pieces of an answer.")
    body_timeout_s: Seconds = Field(30, description="Whole time a request may take to arrive.")
    write_timeout_s: Seconds = Field(
        60, description="Longest time a client may leave an answer unread before it is disconnected."
    )
    session_timeout_s: Seconds = Field(
        1800, description="Longest time a WebSocket is open, and so the longest live transcription."
    )
    socket_idle_timeout_s: Seconds = Field(
        300, description="Longest time the client of a WebSocket may say nothing while it waits for nothing."
    )
    socket_ping_interval_s: Seconds = Field(
        20, description="Between two pings on a WebSocket; a client that does not answer them is cut off."
    )
    keepalive_timeout_s: Seconds = Field(75, description="How long an unused client connection stays open.")
    head_hold_s: SecondsOrZero = Field(
        1.0,
        description="How long a stream's headers wait for the first piece of the answer, so that an "
        "early error keeps its HTTP status.",
    )
    ping_interval_s: Seconds = Field(10, description="Comment lines that keep a silent stream open.")
    drain_grace_s: SecondsOrZero = Field(
        30, description="After SIGTERM, how long running calls may take to finish."
    )
    load_timeout_s: Seconds = Field(300, description="Longest time a model may take to load.")

    # --- what it serves ---------------------------------------------------------------------------
    modalities: tuple[ModalityName, ...] = Field(
        (),
        description="Serve only models for these, such as `chat`, `asr`, `tts`, `vision`, `image`, "
        "`embedding`; without it all.",
    )
    memory_budget_bytes: int | None = Field(
        None,
        ge=256 * 1024**2,
        le=1024**5,
        description="Most memory of all processes that run a model. Before another one is loaded, those that "
        "nobody calls leave, least recently used first, but never pinned ones.",
        json_schema_extra={"default_text": "60 % of the memory of this machine or its container"},
    )

    # --- how it tries again -----------------------------------------------------------------------
    max_attempts: int = Field(
        3,
        ge=1,
        le=10,
        description="Tries of a call over all endpoints of its route, hedges and continuations included. A "
        "new try begins only while nothing of the answer was sent.",
    )
    retry_budget_ratio: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Most retries and hedges that run at once, as a share of the calls that run; a few "
        "are always allowed. An outage so never multiplies the load.",
    )
    breaker_failures: int = Field(
        5,
        ge=0,
        le=1000,
        description="Failures in a row after which an endpoint is left alone for `breaker_open_s`; 0: never. "
        "It is left alone too when half of its last 20 or more calls failed.",
    )
    breaker_open_s: Seconds = Field(
        5, description="How long a failing endpoint is left alone; doubled each time that its probe fails."
    )
    breaker_max_open_s: Seconds = Field(60, description="Longest time that an endpoint is left alone.")
    key_refresh_s: Seconds = Field(
        0.5, description="How often the catalog is asked for new or revoked keys and a new spec."
    )
    strict_local_transport: bool = Field(
        False,
        description="Send calls inside one process through the network codec too, to find what it "
        "cannot carry. For tests.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would read `port = true` as port 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("not a number")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _usual_level_names(cls, value: Any) -> Any:
        folded = value.casefold() if isinstance(value, str) else value
        return {"warn": "warning", "critical": "error", "fatal": "error"}.get(folded, folded)

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.port and self.port == self.metrics_port and self.host == self.metrics_host:
            raise ValueError(f"port and metrics_port are both {self.port} on {self.host}; change one of them")
        return self


SECRETS = frozenset({"pepper", "worker_token"})
"""Never shown; may also be given as `NAME_file`, the path of a file that holds the value."""

LISTS = frozenset({"cors_origins", "egress_allow", "labels", "modalities", "orchestrator", "worker"})
"""Separated by commas where only text can be given."""
