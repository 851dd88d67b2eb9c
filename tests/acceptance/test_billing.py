"""From prices in hub.yaml to a bill: exact costs, sums by every dimension, invoices, and reconciliation."""

from __future__ import annotations

import asyncio
import csv
import io
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from typing import Any

import msgspec
import pytest

from inferhub.testing.admin import Admin, Member, ended
from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.talk import COMPLETIONS, EMBEDDINGS, Talk
from inferhub.testing.upstream_process import Upstream

SPEC = """\
models:
  - {{name: echo, backend: echo, slots: 64}}
  - {{name: free, backend: echo}}
  - {{name: dear, backend: echo}}
  - {{name: "@SUM", backend: echo}}
  - {{name: remote, backend: openai_compatible, slots: 64, options: {{base_url: "{upstream}"}}}}
  - {{name: audited, backend: openai_compatible, slots: 64, options: {{base_url: "{upstream}"}}}}
routes:
  - {{name: alias, model: dear}}
prices:
  - {{model: echo, input_per_mtok: 0.15, output_per_mtok: 0.6}}
  - {{model: dear, per_request: "0.004999999999"}}
  - {{model: remote, input_per_mtok: "2.000000000001", cached_input_per_mtok: 0, output_per_mtok: 7.77}}
  - {{model: audited, input_per_mtok: 1, output_per_mtok: 1}}
"""
DIMENSIONS = ("tenant", "project", "key", "modality", "model", "day", "status", "source")
COUNTS = ("calls", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
FORMULA = "@SUM"


@pytest.fixture(scope="module")
def billing_hub(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[Hub]:
    spec = SPEC.format(upstream=upstream_url)
    with running_hub("serve", tmp_path_factory.mktemp("billing"), spec) as running:
        yield running


@pytest.fixture
def admin(billing_hub: Hub) -> Admin:
    return Admin(billing_hub.url, billing_hub.admin_key)


@pytest.fixture
async def member(admin: Admin) -> Member:
    return await admin.member()


async def events_of(admin: Admin, member: Member, count: int) -> list[dict[str, Any]]:
    return await admin.events(ended(count), tenant_id=member.tenant_id)


def total_of(rows: list[dict[str, Any]]) -> Decimal:
    return sum((Decimal(row["cost_usd"]) for row in rows), Decimal(0))


def month_now() -> str:
    return f"{datetime.now(UTC):%Y-%m}"


def sheet(body: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(body.decode(), newline="")))


# --- what one call costs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "cost"),
    [
        # 4 tokens at the price, 3 cached ones for nothing, 11 of output.
        ("remote", Decimal("0.000008000000000004") + 11 * Decimal("0.00000777")),
        ("dear", Decimal("0.004999999999")),
        ("alias", Decimal("0.004999999999")),
    ],
)
async def test_the_header_says_exactly_what_the_ledger_bills(
    admin: Admin, member: Member, model: str, cost: Decimal
) -> None:
    answer = await member.talk.chat(model, user="script:n=11")
    assert answer.status == 200
    (event,) = await events_of(admin, member, 1)
    assert answer.head["x-inferhub-cost-usd"] == f"{cost:f}"
    assert Decimal(event["cost_usd"]) == cost
    assert event["price_version"] in {
        price["version"]
        for price in (await admin.get("prices"))["data"]
        if price["model"] == model.replace("alias", "dear")
    }


async def test_a_model_without_a_price_says_nothing_of_cost(admin: Admin, member: Member) -> None:
    answer = await member.talk.chat("free")
    assert answer.head["x-inferhub-cost-usd"] is None
    (event,) = await events_of(admin, member, 1)
    assert (Decimal(event["cost_usd"]), event["price_version"]) == (0, "")


# --- who used how much --------------------------------------------------------------------------------


@pytest.fixture
async def used(admin: Admin, member: Member) -> list[dict[str, Any]]:
    """Events of a tenant with two projects, three keys, four models, three kinds of call and two ends."""
    second = await admin.post("projects", name="second", tenant_id=member.tenant_id)
    talks = [member.talk]
    for project_id in (member.project_id, second["id"]):
        key = await admin.key(member.tenant_id, project_id)
        talks.append(Talk(admin.talk.url, key["key"]))
    calls = []
    for talk in talks:
        calls += [talk.chat("echo"), talk.chat("remote"), talk.chat("dear"), talk.chat(FORMULA)]
        calls.append(talk.chat("remote", user="script:mode=400"))
        calls.append(talk.post(EMBEDDINGS, {"model": "echo", "input": ["a", "b c"]}))
        calls.append(talk.post(COMPLETIONS, {"model": "free", "prompt": "x"}))
    answers = await asyncio.gather(*calls)
    assert Counter(answer.status for answer in answers) == {200: 18, 400: 3}
    return await events_of(admin, member, 21)


@pytest.mark.parametrize("by", [*DIMENSIONS, "project,key", "key,model,modality,status"])
async def test_usage_by_every_dimension_in_pages_of_one(
    admin: Admin, member: Member, used: list[dict[str, Any]], by: str
) -> None:
    rows = await admin.all_rows("usage", limit=1, by=by, tenant_id=member.tenant_id)
    assert rows == await admin.all_rows("usage", by=by, tenant_id=member.tenant_id)
    keys = [tuple(row[name] for name in by.split(",")) for row in rows]
    assert keys == sorted(keys)

    def key_of(event: dict[str, Any]) -> tuple[str, ...]:
        day = datetime.fromtimestamp(event["at_ms"] / 1000, UTC).date().isoformat()
        known = {**event, "day": day} | {n: event[f"{n}_id"] for n in ("tenant", "project", "key")}
        return tuple(known[name] for name in by.split(","))

    expected: dict[tuple[str, ...], Counter[str]] = {}
    costs: dict[tuple[str, ...], Decimal] = {}
    for event in used:
        group = key_of(event)
        found = expected.setdefault(group, Counter())
        found.update({"calls": 1, **{name: event[name] for name in COUNTS[1:]}})
        costs[group] = costs.get(group, Decimal(0)) + Decimal(event["cost_usd"])
    assert sorted(expected) == keys
    for key, row in zip(keys, rows, strict=True):
        assert {name: row[name] for name in COUNTS} == {name: expected[key][name] for name in COUNTS}
        assert Decimal(row["cost_usd"]) == costs[key]


async def test_events_in_pages_of_one_are_the_same_events(
    admin: Admin, member: Member, used: list[dict[str, Any]]
) -> None:
    pages = await admin.all_rows("usage/events", limit=1, tenant_id=member.tenant_id)
    assert [event["id"] for event in pages] == [event["id"] for event in used]


async def test_a_csv_holds_the_same_rows_and_no_formula(
    admin: Admin, member: Member, used: list[dict[str, Any]]
) -> None:
    path = f"/admin/v1/usage?by=model&tenant_id={member.tenant_id}&format=csv"
    answer = await admin.talk.get(path)
    assert answer.head["content-type"] == "text/csv; charset=utf-8"
    rows = sheet(answer.body)
    assert [row["model"] for row in rows] == [f"'{FORMULA}", "dear", "echo", "free", "remote"]
    assert sum(Decimal(row["cost_usd"]) for row in rows) == total_of(used)

    paged: list[dict[str, str]] = []
    after = ""
    while True:
        page = await admin.talk.get(f"{path}&limit=2{after}")
        paged += sheet(page.body)
        following = page.head["x-inferhub-next-after"]
        if following is None:
            break
        after = f"&after={following}"
    assert paged == rows


async def test_the_invoice_of_the_month_is_the_sum_of_its_calls(
    admin: Admin, member: Member, used: list[dict[str, Any]]
) -> None:
    bill = await admin.get(f"invoices/{month_now()}?tenant_id={member.tenant_id}")
    assert (bill["tenant_id"], bill["month"], bill["is_final"]) == (member.tenant_id, month_now(), False)
    assert Decimal(bill["cost_usd"]) == total_of(bill["lines"]) == total_of(used)
    assert Decimal(bill["total_usd"]) == total_of(used).quantize(Decimal("0.01"), "ROUND_HALF_UP")
    assert {(line["project_id"], line["model"]) for line in bill["lines"]} == {
        (event["project_id"], event["model"]) for event in used
    }
    assert sum(line["calls"] for line in bill["lines"]) == len(used)

    answer = await admin.talk.get(f"/admin/v1/invoices/{month_now()}?tenant_id={member.tenant_id}&format=csv")
    *lines, total = sheet(answer.body)
    assert (total["project_id"], Decimal(total["cost_usd"])) == ("total", Decimal(bill["total_usd"]))
    assert sum(Decimal(line["cost_usd"]) for line in lines) == Decimal(bill["cost_usd"])
    assert f"'{FORMULA}" in {line["model"] for line in lines}


async def test_an_invoice_of_three_half_cents_rounds_once(admin: Admin, member: Member) -> None:
    """3 x 0.004999999999 is 1.4999999997 cents: one cent, where rounded calls would make none or three."""
    for _ in range(3):
        await member.talk.chat("dear")
    await events_of(admin, member, 3)
    bill = await admin.get(f"invoices/{month_now()}?tenant_id={member.tenant_id}")
    assert (Decimal(bill["cost_usd"]), Decimal(bill["total_usd"])) == (
        Decimal("0.014999999997"),
        Decimal("0.01"),
    )


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("invoices/2026-13", "month"),
        ("usage?by=day,day", "by"),
        ("usage?by=shoe_size", "by"),
        ("usage?after=bm9wZQ==", "after"),
        ("usage?from=yesterday", "from"),
        ("usage?from=2026-02-02&until=2026-02-01", "from"),
        ("usage?limit=0", "limit"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_by_its_field(
    admin: Admin, path: str, param: str
) -> None:
    answer = await admin.talk.get(f"/admin/v1/{path}")
    assert (answer.status, answer.error["param"]) == (400, param), answer.body


# --- the provider's own figures -----------------------------------------------------------------------


async def test_the_ledger_agrees_with_the_upstream_until_somebody_tampers(
    admin: Admin, member: Member, upstream: Upstream
) -> None:
    marks = [f"audited-{member.key_id}-{number}" for number in range(12)]
    await asyncio.gather(
        *(
            member.talk.chat("audited", stream=bool(i % 2), user=f"script:n={i + 1};{mark}")
            for i, mark in enumerate(marks)
        )
    )
    await events_of(admin, member, 12)
    ours = [r for r in await upstream.log() if f"audited-{member.key_id}" in r.body]
    said = [int(msgspec.json.decode(r.body)["user"].partition("n=")[2].partition(";")[0]) for r in ours]
    row = {
        "day": f"{datetime.now(UTC):%Y-%m-%d}",
        "model": "audited",
        "calls": len(ours),
        "input_tokens": 7 * len(ours),
        "output_tokens": sum(said),
    }
    assert (len(ours), sum(said)) == (12, 78)

    report = await admin.post("reconciliation", rows=[row], tolerance=0.0)
    assert (report["agrees"], len(report["data"])) == (True, 1), report
    for field, change in product(("calls", "input_tokens", "output_tokens"), (1, -1)):
        report = await admin.post("reconciliation", rows=[row | {field: row[field] + change}], tolerance=0.0)
        assert not report["agrees"]
        (difference,) = report["data"]
        assert (difference["day"], difference["model"], difference["is_beyond"]) == (
            row["day"],
            "audited",
            True,
        )
        side = field if field == "calls" else field.removesuffix("_tokens") + "_tokens"
        assert difference[f"provider_{side}"] - difference[f"ledger_{side}"] == change
    # Within the default of one percent, one token of 84 is too much, and one of 7,800 would not be.
    assert not (await admin.post("reconciliation", rows=[row | {"input_tokens": 85}]))["agrees"]
    assert (await admin.post("reconciliation", rows=[row | {"input_tokens": 85}], tolerance=0.02))["agrees"]


@pytest.mark.parametrize("day", ["2026-02-30", "2026-2-3", "today"])
async def test_a_report_of_a_day_that_is_none_is_refused(admin: Admin, day: str) -> None:
    good = {"day": "2026-01-01", "model": "audited"}
    rows = [good, {**good, "day": day}, {**good, "day": "2026-12-31"}]
    answer = await admin.talk.post("/admin/v1/reconciliation", {"rows": rows})
    assert answer.status == 400
    assert "day" in (answer.error["param"] or "")


# --- prices ------------------------------------------------------------------------------------------


async def _spec(admin: Admin) -> str:
    return (await admin.talk.get("/admin/v1/spec")).body.decode()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{model: free, from: 2020-01-31, per_request: 1}", "in the past"),
        ("{model: free, input_per_mtok: -1}", "input_per_mtok"),
        ("{model: free, output_per_mtok: 10001}", "output_per_mtok"),
        ("{model: free, per_request: .inf}", "per_request"),
        ("{model: free, per_request: 0.0000000000001}", "per_request"),
        ("{model: free, per_request: cheap}", "per_request"),
        ("{model: free, from: 2026-02-30}", "from"),
        ("{model: free, per_banana: 1}", "per_banana"),
        ("{model: no-such-model, per_request: 1}", "no-such-model"),
        ("{model: dear, per_request: 1}", "dear"),
    ],
)
async def test_a_price_that_makes_no_sense_is_refused_where_it_stands(
    admin: Admin, row: str, says: str
) -> None:
    spec, prices = await _spec(admin), await admin.get("prices")
    line = len(spec.rstrip("\n").split("\n")) + 1
    answer = await admin.apply(f"{spec.rstrip()}\n  - {row}\n")
    assert (answer.status, answer.error["code"]) == (400, "setup_error"), answer.body
    assert f"hub.yaml:{line}:" in answer.error["message"], answer.error
    assert says in answer.error["message"]
    assert (await _spec(admin), await admin.get("prices")) == (spec, prices)


async def test_a_new_price_is_for_new_calls(admin: Admin, member: Member) -> None:
    spec = await _spec(admin)
    assert (await member.talk.chat("dear")).status == 200
    (before,) = await events_of(admin, member, 1)
    try:
        assert (await admin.apply(spec.replace("0.004999999999", "0.25"))).status == 200
        answer = await member.talk.chat("dear")
        assert answer.head["x-inferhub-cost-usd"] == "0.25"
        old, new = await events_of(admin, member, 2)
        assert old == before
        assert Decimal(new["cost_usd"]) == Decimal("0.25")
        assert new["price_version"] != old["price_version"]
        # One that begins tomorrow changes nothing today.
        later = "  - {model: dear, from: 2990-01-01, per_request: 1}\n"
        assert (await admin.apply(f"{spec.rstrip()}\n{later}")).status == 200
        answer = await member.talk.chat("dear")
        assert answer.head["x-inferhub-cost-usd"] == "0.004999999999"
    finally:
        assert (await admin.apply(spec)).status == 200
