"""`python -m benchmarks.simulation`: writes the tables of the documentation again from the last result.

Simulated figures are the same on every machine, so a test compares the page with the result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.report import RESULTS

PAGE = ROOT / "docs" / "explanation" / "routing-simulation.md"
RESULT = RESULTS / "routing.json"
BEGIN, END = "<!-- tables: python -m benchmarks.simulation -->\n", "<!-- end of tables -->\n"


def written_page(page: str, result: dict[str, Any]) -> str:
    """The page with everything between its marks made from the result."""
    before, _, rest = page.partition(BEGIN)
    _, _, behind = rest.partition(END)
    return f"{before}{BEGIN}\n{tables(result['details'])}\n{END}{behind}"


def tables(details: dict[str, Any]) -> str:
    return "\n".join([*_scenarios(details), *_bursts(details)])


def _scenarios(details: dict[str, Any]) -> list[str]:
    lines = []
    for name, scenario in details["scenarios"].items():
        rows = scenario["policies"]
        some = next(iter(rows.values()))
        lines += [
            f"**{name}**: {scenario['what']}; {some['workers']:,} workers, {some['calls']:,} calls.",
            "",
        ]
        lines += _head("policy", "mean", "p50", "p99", "prefix hits", "max/mean load", "rejected", "broken")
        lines += [_row(policy, row) for policy, row in rows.items()]
        lines.append("")
    return lines


def _row(policy: str, row: dict[str, Any]) -> str:
    hits = row["prefix_hit_rate"]
    cells = (
        f"**{policy}**" if policy == "ours" else policy,
        *(f"{row[name]:.2f} s" for name in ("mean_s", "p50_s", "p99_s")),
        "–" if hits is None else f"{hits:.0%}",
        f"{row['max_over_mean_load']:.2f}",
        f"{row['rejected']:,}",
        str(row["broken"]),
    )
    return f"| {' | '.join(cells)} |"


def _bursts(details: dict[str, Any]) -> list[str]:
    kinds = details["bursts"]
    what = "on 20 idle workers, max/mean load, median (worst) of 20 seeds:"
    lines = [f"**A burst of {details['bursts_of']}** {what}", ""]
    lines += _head("policy", *kinds)
    for policy in next(iter(kinds.values())):
        cells = (f"{found[policy]['median']:.2f} ({found[policy]['worst']:.2f})" for found in kinds.values())
        lines.append(f"| {' | '.join([f'**{policy}**' if policy == 'ours' else policy, *cells])} |")
    return [*lines, ""]


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def main(page: Path = PAGE) -> None:
    page.write_text(written_page(page.read_text(), json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
