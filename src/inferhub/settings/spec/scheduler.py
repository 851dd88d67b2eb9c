"""The `scheduler` of a hub.yaml: its keys, their limits and their help, and what it becomes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from inferhub.core.scheduling import Scheduling, Weights
from inferhub.settings.spec.entry import MAX_SECONDS, Entry, count, no_flag, number

MAX_TERM_WEIGHT = 100
TermWeight = Annotated[
    float,
    BeforeValidator(no_flag),
    Field(ge=0, le=MAX_TERM_WEIGHT, allow_inf_nan=False),
    number(0, MAX_TERM_WEIGHT),
]
MAX_REGIONS = 100
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,63}$")]


class WeightsEntry(Entry):
    """What each term of an endpoint's score counts; every term is between 0 and 1."""

    prefix: TermWeight = Field(default=3.0, description="How much of the prompt its engine has read already.")
    warm: TermWeight = Field(default=3.0, description="Whether the model is loaded, or how soon it could be.")
    pending: TermWeight = Field(
        default=2.0, description="How soon it is done with what waits and runs there."
    )
    memory: TermWeight = Field(default=2.0, description="How much memory of its device is free.")
    region: TermWeight = Field(default=1.0, description="How near it is to the gateway.")
    gpu_fit: TermWeight = Field(
        default=1.0, description="Whether it runs on the kind of device it is wanted on."
    )
    session: TermWeight = Field(default=0.5, description="Whether the call's session belongs to it.")


class SchedulerEntry(Entry):
    """How one endpoint of a model is chosen among several. All of it may be left out."""

    weights: WeightsEntry = Field(
        default=WeightsEntry(), description="What each term counts; 0 leaves a term out of account."
    )
    gate_s: Annotated[
        float,
        BeforeValidator(no_flag),
        Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False),
        number(0, MAX_SECONDS),
    ] = Field(
        default=2.0,
        description="An endpoint with so many more seconds of work than the least busy one gets no call, "
        "whatever speaks for it.",
    )
    gate_factor: Annotated[
        float, BeforeValidator(no_flag), Field(ge=1, le=1000, allow_inf_nan=False), number(1, 1000)
    ] = Field(
        default=1.5, description="And only where the busiest one has so many times as much as the least busy."
    )
    sample: Annotated[int, BeforeValidator(no_flag), Field(ge=1, le=256), count(1, 256)] = Field(
        default=8,
        description="Endpoints that are compared at random where there are more, beside those that know the "
        "prompt or the session.",
    )
    explore: Annotated[
        float, BeforeValidator(no_flag), Field(ge=0, le=1, allow_inf_nan=False), number(0, 1)
    ] = Field(default=0.01, description="Share of the calls that go to any of the compared endpoints.")
    region_policy: Literal["any", "near", "own"] = Field(
        default="any",
        description="Where calls may go at all, seen from the label `region` of their gateway: anywhere, to "
        "its own and near regions, or to its own only.",
    )
    near_regions: dict[Label, tuple[Label, ...]] = Field(
        default_factory=dict,
        max_length=MAX_REGIONS,
        description="Region → the regions that are nearly as good for gateways in it.",
    )
    gpus: tuple[Label, ...] = Field(
        default=(),
        max_length=MAX_REGIONS,
        description="Kinds of GPU, as workers have them in their label `gpu`, the best first.",
    )


def load_scheduling(entry: SchedulerEntry) -> Scheduling:
    weights = Weights(**entry.weights.model_dump())
    return Scheduling(
        weights,
        entry.gate_s,
        entry.gate_factor,
        entry.sample,
        entry.explore,
        entry.region_policy,
        entry.near_regions,
        entry.gpus,
    )
