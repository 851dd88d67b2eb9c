"""What gateways want together, and for how long."""

from __future__ import annotations

import pytest

from inferhub.core.errors import Invalid, Overloaded
from inferhub.core.fleet import Deployment, Placement
from inferhub.core.models import ModelSpec
from inferhub.orchestrator.wants import MAX_HOLDERS, Wants

A, B, C = (Deployment(ModelSpec(f"{name}#1", "echo")) for name in "abc")


def said(wants: Wants, holder: str, *deployments: Deployment, now_s: float = 0.0) -> None:
    wants.prepare(holder, deployments, now_s)
    wants.settle(holder, now_s)


def test_the_wants_of_all_count_and_those_of_one_are_replaced() -> None:
    wants = Wants()
    said(wants, "g1", A, B)
    said(wants, "g2", B, C)
    assert list(wants.union()) == ["a#1", "b#1", "c#1"]
    said(wants, "g1", C)
    assert sorted(wants.union()) == ["b#1", "c#1"]
    said(wants, "g2")
    said(wants, "g1")
    assert wants.union() == {}
    assert wants.is_complete


def test_what_is_prepared_counts_beside_what_there_is_until_it_is_decided() -> None:
    wants = Wants()
    said(wants, "g", A)
    wants.prepare("g", (B,), 1.0)
    assert sorted(wants.union()) == ["a#1", "b#1"]
    assert wants.mine() == {"g": (A,)}
    wants.give_up("g", 2.0)
    assert sorted(wants.union()) == ["a#1"]
    wants.prepare("g", (B,), 3.0)
    wants.settle("g", 4.0)
    assert sorted(wants.union()) == ["b#1"]


def test_of_two_placements_of_one_model_the_later_one_counts() -> None:
    wants = Wants()
    said(wants, "z", Deployment(A.spec, Placement(1)))
    said(wants, "a", Deployment(A.spec, Placement(2)))
    assert wants.union()["a#1"].placement.replicas == 2
    said(wants, "z", Deployment(A.spec, Placement(3)))
    assert wants.union()["a#1"].placement.replicas == 3


def test_who_is_gone_loses_its_say_after_a_grace_and_who_watches_never() -> None:
    wants = Wants(grace_s=60.0)
    said(wants, "goes", A)
    said(wants, "stays", B)
    wants.watches("stays", 0.0)
    wants.watches("stays", 0.0)
    wants.left("stays", 1.0)
    for now_s in range(0, 300, 10):
        wants.tick(float(now_s))
        assert ("a#1" in wants.union()) == (now_s <= 60)
    assert sorted(wants.union()) == ["b#1"]
    wants.left("stays", 300.0)
    wants.tick(360.0)
    assert sorted(wants.union()) == ["b#1"]
    wants.tick(361.0)
    assert wants.union() == {}
    assert not wants.is_complete


def test_who_watches_and_has_said_nothing_leaves_it_open_what_is_wanted() -> None:
    wants = Wants()
    assert not wants.is_complete
    said(wants, "g1", A)
    assert wants.is_complete
    wants.watches("g2", 0.0)
    assert not wants.is_complete
    said(wants, "g2")
    assert wants.is_complete


def test_what_was_told_elsewhere_counts_unless_its_holder_said_something_newer_here() -> None:
    wants = Wants()
    wants.heard_elsewhere({"g1": (A,), "g2": (B,)})
    assert sorted(wants.union()) == ["a#1", "b#1"]
    assert wants.is_complete
    said(wants, "g1", C)
    assert sorted(wants.union()) == ["b#1", "c#1"]
    assert wants.mine() == {"g1": (C,)}
    wants.watches("g2", 0.0)
    assert wants.is_complete
    assert wants.mine() == {"g1": (C,), "g2": (B,)}
    wants.heard_elsewhere({})
    assert sorted(wants.union()) == ["b#1", "c#1"]


def test_there_is_a_limit_on_holders() -> None:
    wants = Wants()
    for n in range(MAX_HOLDERS):
        said(wants, f"g{n}")
    said(wants, "g0", A)
    with pytest.raises(Overloaded):
        wants.prepare("one_more", (), 0.0)


def test_the_last_word_is_with_the_orchestrator_that_a_gateway_talks_to() -> None:
    wants = Wants()
    wants.watches("g", 0.0)
    said(wants, "g", A)
    wants.told_others("g", (A,))
    wants.heard_elsewhere({"g": (B,)})
    assert sorted(wants.union()) == ["a#1"]
    # It went to another one.
    wants.left("g", 1.0)
    assert sorted(wants.union()) == ["b#1"]
    assert wants.mine() == {}
    # It came back.
    said(wants, "g", C)
    assert sorted(wants.union()) == ["c#1"]
    assert wants.mine() == {"g": (C,)}
    wants.told_others("g", (C,))
    assert wants.mine() == {}
    assert sorted(wants.union()) == ["c#1"]


@pytest.mark.parametrize("name", ["", "g\0", "g 1", "g" * 64, "-g"])
def test_a_gateway_with_a_name_that_no_store_can_keep_is_refused(name: str) -> None:
    wants = Wants()
    with pytest.raises(Invalid):
        wants.prepare(name, (A,), 0.0)
    with pytest.raises(Invalid):
        wants.watches(name, 0.0)
    assert wants.mine() == {}
    assert wants.union() == {}


@pytest.mark.parametrize("name", ["", "a\0#1", "a\x1b[31m#1", "a" * 300])
def test_a_model_with_a_name_that_no_worker_may_report_is_not_wanted(name: str) -> None:
    wants = Wants()
    with pytest.raises(Invalid):
        wants.prepare("g", (A, Deployment(ModelSpec(name, "echo"))), 0.0)
    assert wants.union() == {}
