"""`inferhub reconcile`: holds the ledger against a provider's own report."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._billing import open_usage
from inferhub.cli._context import load, open_catalog, read_text
from inferhub.cli._errors import ExitCode
from inferhub.cli._flags import STORAGE, Json, new_app, with_settings
from inferhub.cli._output import print_json, table, working
from inferhub.cli._records import act
from inferhub.core.errors import Invalid

if TYPE_CHECKING:
    from inferhub.settings import Settings
    from inferhub.stores.usage.billing import Difference, Reported

app = new_app()

MAX_ROWS = 100_000
COLUMNS = ("day", "model", "input_tokens", "output_tokens")
_COUNT = re.compile(r"[0-9]{1,15}")


@app.command(
    epilog="""\b
Examples:
  inferhub reconcile report.csv
  inferhub reconcile report.csv --tolerance 0.05 --json
\b
The report is CSV with the columns day, model, input_tokens, output_tokens and, if it has it, calls.
Exit codes: 0 they agree, 1 at least one day of one model differs by more than the tolerance."""
)
@with_settings((*STORAGE, "usage_url"))
def reconcile(
    report: Annotated[Path, typer.Argument(help="The provider's report as CSV; `-` reads standard input.")],
    *,
    tolerance: Annotated[float, typer.Option(min=0, max=1, help="Share by which counts may differ.")] = 0.01,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Compare the ledger with what a provider says was used.

    Only models that the report names are compared, day by day, input with cached tokens included and
    output with reasoning.
    """
    rows = list(reported_rows(read_text(report), str(report)))
    with working(f"Comparing {len(rows)} rows…", silent=json):
        differences = asyncio.run(_compare(load(flags).settings, rows, tolerance))
    beyond = [difference for difference in differences if difference.is_beyond]
    if json:
        from msgspec import to_builtins

        print_json({"agrees": not beyond, "data": [to_builtins(d) for d in differences]})
    else:
        _print(differences, beyond, tolerance)
    if beyond:
        raise typer.Exit(ExitCode.FAILED)


def reported_rows(text: str, source: str) -> Iterator[Reported]:
    """The report, line by line. Raises `Invalid` with the line and what is wrong there."""
    from inferhub.stores.usage.billing import Reported

    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
    seen: dict[tuple[str, str], int] = {}
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise Invalid(f"{source} has no column {', '.join(missing)}.", param="report")
        for row in reader:
            line = reader.line_num
            day, model = row["day"] or "", row["model"] or ""
            if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", day) or not model:
                raise _wrong(
                    source, line, f"needs a day such as 2026-11-30 and a model; got {day!r}, {model!r}"
                )
            first = seen.setdefault((day, model), line)
            if first != line:
                raise _wrong(source, line, f"repeats {day}, {model} of line {first}; add them up")
            if len(seen) > MAX_ROWS:
                raise _wrong(source, line, f"is beyond the most that is compared at once, {MAX_ROWS} rows")
            calls = row.get("calls")
            yield Reported(
                day,
                model,
                _count(row["input_tokens"], "input_tokens", source, line),
                _count(row["output_tokens"], "output_tokens", source, line),
                _count(calls, "calls", source, line) if calls else None,
            )
    except csv.Error as error:
        raise _wrong(source, reader.line_num, f"is no CSV: {error}") from error
    if not seen:
        raise Invalid(f"{source} has no rows.", param="report")


def _count(text: str | None, column: str, source: str, line: int) -> int:
    if text is None or not _COUNT.fullmatch(text):
        raise _wrong(source, line, f"{column} is a whole number, 0 or more; got {(text or '')[:40]!r}")
    return int(text)


def _wrong(source: str, line: int, what: str) -> Invalid:
    return Invalid(f"{source}:{line}: {what}.", param="report")


async def _compare(settings: Settings, rows: Iterable[Reported], tolerance: float) -> tuple[Difference, ...]:
    from inferhub.stores.usage.billing import reconcile as compare

    report = list(rows)
    async with open_usage(settings) as store:
        differences = await compare(store, report, tolerance)
    async with open_catalog(settings) as catalog:
        await catalog.record(act("usage.reconcile", "usage", None, rows=str(len(report))))
    return differences


def _print(differences: Iterable[Difference], beyond: list[Difference], tolerance: float) -> None:
    rows = [
        (
            d.day,
            d.model,
            f"{d.ledger_input_tokens} / {d.provider_input_tokens}",
            f"{d.ledger_output_tokens} / {d.provider_output_tokens}",
            f"{d.ledger_calls} / {'-' if d.provider_calls is None else d.provider_calls}",
            "DIFFERS" if d.is_beyond else "agrees",
        )
        for d in differences
    ]
    print(table(("DAY", "MODEL", "INPUT ours / theirs", "OUTPUT", "CALLS", ""), rows))
    print(f"\n{len(beyond)} of {len(rows)} differ by more than {tolerance:.2%}.")
