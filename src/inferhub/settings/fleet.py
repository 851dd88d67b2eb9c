"""The settings of gateways, orchestrators and workers about one another; `model` has all the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inferhub.settings.types import Address, Seconds

Label = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}=[A-Za-z0-9._/-]{0,62}$",
        json_schema_extra={"allowed": "NAME=VALUE"},
    ),
]


class FleetSettings(BaseModel):
    """Who is where, and who looks after whom."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes of `inferhub gateway` that share its port; about one for each CPU core.",
    )
    worker_listen: Address = Field(
        "127.0.0.1:50051", description="Where `inferhub worker` listens for gateways (gRPC)."
    )
    worker: tuple[Address, ...] = Field(
        (),
        description="Workers that `inferhub gateway` sends calls to, where no orchestrator names them.",
    )
    worker_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Name of this worker in headers, logs and metrics.",
        json_schema_extra={"default_text": "made of host name and port"},
    )
    worker_refresh_s: Seconds = Field(
        0.5, description="How often a worker that does not register is asked for its state."
    )
    advertise: Address | None = Field(
        None,
        description="Where gateways and orchestrators reach this worker.",
        json_schema_extra={
            "default_text": "`worker_listen`, or this host's name where that is all addresses"
        },
    )
    labels: tuple[Label, ...] = Field(
        (),
        description="What this worker is, such as `gpu=h100,region=eu`, for models that ask for it; of a "
        "gateway, `region` says which workers are near.",
    )
    orchestrator_listen: Address = Field(
        "127.0.0.1:50050",
        description="Where `inferhub orchestrator` listens for workers and gateways (gRPC).",
    )
    orchestrator: tuple[Address, ...] = Field(
        (),
        description="Orchestrators that this worker registers with, or that tell this gateway its workers; "
        "where the first does not answer, the next is asked.",
    )
    fleet_url: str = Field(
        "memory://",
        min_length=1,
        description="What orchestrators share, so that two may run: `memory://` (one orchestrator), "
        "`postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, `redis://[:PASSWORD@]HOST:PORT`.",
    )
    fleet_cert_file: Path | None = Field(
        None,
        description="PEM certificate that this process shows to workers, gateways and orchestrators: mutual "
        "TLS, together with `fleet_key_file` and `fleet_ca_file`. It must name the host that others reach it "
        "by. A renewed file is taken up by itself.",
    )
    fleet_key_file: Path | None = Field(None, description="Key of `fleet_cert_file`, PEM, not encrypted.")
    fleet_ca_file: Path | None = Field(
        None,
        description="PEM certificate of the authority that signed the certificates of all of them; whoever "
        "shows none of it is refused.",
    )
    heartbeat_interval_s: Seconds = Field(
        1.0, description="How often workers say that they are there; two missed beats make one suspect."
    )
    lease_s: Seconds = Field(
        5.0,
        description="A worker that is unheard for so long is out of the fleet until it registers again.",
    )
    launcher: Literal["none", "process"] = Field(
        "none",
        description="Whether `inferhub orchestrator` starts workers itself: none, or processes beside it.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=256,
        description="Worker processes that are started and kept running. 0: `inferhub serve` runs the models "
        "in its own process.",
    )
    max_workers: int | None = Field(
        None,
        ge=1,
        le=256,
        description="As many worker processes may run while more work waits than `workers` can do soon.",
        json_schema_extra={"default_text": "`workers`"},
    )

    vram_share: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of each GPU's memory that models may take. Before another one is loaded there, "
        "those that nobody calls leave, least recently used first.",
    )
    model_idle_ttl_s: Seconds | None = Field(
        None,
        description="Models that nobody has called for so long leave memory until the next call, unless they "
        "are pinned. `idle_ttl_s` of a model replaces it. Remote models take no memory, and stay.",
        json_schema_extra={"default_text": "never"},
    )
    room_wait_s: Seconds = Field(
        30,
        description="How long a model that is to be loaded waits for others to become idle, where only "
        "their memory is left.",
    )

    @model_validator(mode="after")
    def _certificates_are_whole(self) -> Self:
        names = ("fleet_cert_file", "fleet_key_file", "fleet_ca_file")
        missing = [name for name in names if getattr(self, name) is None]
        if 0 < len(missing) < len(names):
            raise ValueError(
                f"{' and '.join(missing)} is missing; mutual TLS needs all of {', '.join(names)}"
            )
        return self
