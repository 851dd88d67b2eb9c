"""The chain of the audit log: what an entry says, its hash covers."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from inferhub.core.audit import GENESIS, Act, chain

ACT = Act("ih_a", "key.revoke", "ih_b", "ten_x", {"name": "ci", "role": "free"}, "req_1")
FIRST = chain(1, 1000, ACT, GENESIS)


def test_an_entry_says_what_it_was_given() -> None:
    assert (FIRST.seq, FIRST.at, FIRST.act, FIRST.previous_hash) == (1, 1000, ACT, GENESIS)
    assert len(FIRST.hash) == len(GENESIS) == 64
    # Written once and kept: catalogs hold hashes that were made so.
    assert FIRST.hash == "0eb563e6e33720712c5d164bd0eb648f7e64371d2901d128655d817b99f35a12"


@pytest.mark.parametrize("name", [field.name for field in fields(Act)])
def test_the_hash_covers_every_field_of_an_act(name: str) -> None:
    other = replace(ACT, **{name: {"name": "other"} if name == "detail" else "other"})
    assert chain(1, 1000, other, GENESIS).hash != FIRST.hash


def test_the_hash_covers_place_time_and_what_came_before() -> None:
    others = [chain(2, 1000, ACT, GENESIS), chain(1, 1001, ACT, GENESIS), chain(1, 1000, ACT, FIRST.hash)]
    assert len({FIRST.hash, *(entry.hash for entry in others)}) == 4


def test_the_order_of_details_does_not_matter_and_none_is_not_empty() -> None:
    turned = replace(ACT, detail=dict(reversed(ACT.detail.items())))
    assert chain(1, 1000, turned, GENESIS).hash == FIRST.hash
    without, empty = replace(ACT, tenant_id=None), replace(ACT, tenant_id="")
    assert chain(1, 1000, without, GENESIS).hash != chain(1, 1000, empty, GENESIS).hash


def test_fields_do_not_run_into_each_other() -> None:
    one, other = replace(ACT, actor='a","b', action="c"), replace(ACT, actor="a", action='b","c')
    assert chain(1, 1000, one, GENESIS).hash != chain(1, 1000, other, GENESIS).hash
