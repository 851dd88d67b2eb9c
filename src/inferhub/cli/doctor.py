"""`inferhub doctor`: runs every check of `_checks`, prints each finding with its remedy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import typer

from inferhub.cli._errors import ExitCode, printable
from inferhub.cli._flags import PLACES, Json, Key, Url, new_app, with_settings
from inferhub.cli._output import console, print_json

app = new_app()

_MARKS = {"ok": ("ok", "green"), "note": ("note", "cyan"), "problem": ("PROBLEM", "red")}


@app.command(
    epilog="""\b
Examples:
  inferhub doctor
  inferhub doctor --json | jq '.findings[] | select(.status == "problem")'
  inferhub doctor --url http://gpu-1:8000 --key ih_…
\b
Exit codes: 0 no problem, 1 at least one problem."""
)
@with_settings(PLACES)
def doctor(*, url: Url = None, key: Key = None, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Look for problems on this machine and say how to mend them.

    Looks at settings, spec, catalog, weights, devices, disk, limits, ports and the running server.
    Changes nothing, and calls no model.
    """
    from inferhub.cli._checks import examine

    findings = asyncio.run(examine(flags, url, key))
    problems = sum(finding.status == "problem" for finding in findings)
    if json:
        print_json({"problems": problems, "findings": findings})
    else:
        screen = console()
        for finding in findings:
            mark, color = _MARKS[finding.status]
            screen.print(f"[{color}]{mark:>7}[/]  {finding.name}: ", end="")
            screen.print(printable(finding.text), markup=False)
            if finding.remedy:
                screen.print(f"{'':>9}-> {printable(finding.remedy)}", markup=False)
        print(f"\n{problems} problem{'' if problems == 1 else 's'} found.")
    if problems:
        raise typer.Exit(ExitCode.FAILED)
