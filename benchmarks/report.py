"""Prints figures and verdicts for people, and writes them as JSON for the next run to compare with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, Measure, Outcome, Verdict

RESULTS = Path(__file__).parent / "results"


def figure_line(figure: Figure) -> str:
    value = "-" if figure.value is None else f"{_plain(figure.value)} {figure.unit}"
    target = f"target {figure.target} {figure.unit}" if figure.target else ""
    verdict = "" if figure.verdict is Verdict.NO_TARGET else figure.verdict
    note = f"  ({figure.note})" if figure.note else ""
    return f"  {figure.name:<52} {value:>16}   {target:<22} {verdict}{note}".rstrip()


def _plain(value: float) -> str:
    """Three digits that say something, never `1.13e+03`."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_outcome(measure: Measure, outcome: Outcome, elapsed_s: float) -> None:
    print(f"\n{measure.name}: {measure.title}  [{elapsed_s:.0f} s]")
    for figure in outcome.figures:
        print(figure_line(figure))
    for line in table_lines(outcome.table):
        print(line)


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """In columns; a name that the line above has too is left out."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines, before = [], ""
    for row in rows:
        first = "" if row[0] == before else row[0]
        before = row[0]
        lines.append(
            "  "
            + "  ".join(
                cell.ljust(width) for cell, width in zip((first, *row[1:]), widths, strict=True)
            ).rstrip()
        )
    return lines


def summary(figures: Sequence[Figure]) -> str:
    counts = {verdict: sum(f.verdict is verdict for f in figures) for verdict in Verdict}
    text = (
        f"{counts[Verdict.MET]} met, {counts[Verdict.MISSED]} missed, "
        f"{counts[Verdict.NOT_MEASURED]} not measured"
    )
    missed = [f.name for f in figures if f.verdict is Verdict.MISSED]
    return text + (f"\nMISSED: {'; '.join(missed)}" if missed else "")


def as_json(
    measure: Measure, outcome: Outcome, machine: dict[str, Any], versions: dict[str, str], *, quick: bool
) -> dict[str, Any]:
    return {
        "name": measure.name,
        "title": measure.title,
        "date": datetime.now(UTC).date().isoformat(),
        "quick": quick,
        "machine": machine,
        "versions": versions,
        "figures": [
            {
                **asdict(figure),
                "value": None if figure.verdict is Verdict.NOT_MEASURED else figure.value,
                "target": str(figure.target) if figure.target else None,
                "verdict": figure.verdict,
            }
            for figure in outcome.figures
        ],
        "details": outcome.details,
    }


def write(name: str, document: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(_rounded(document), indent=2, ensure_ascii=False, allow_nan=False)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def _rounded(value: Any) -> Any:
    """Four significant digits: more would only make noise look like knowledge."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
