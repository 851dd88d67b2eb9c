"""F7: the `inferhub` command. One file per verb, loaded only when that verb is asked for.

`main` is the only place where an error becomes words and an exit code. Files that verbs share
begin with an underscore; `_context` alone looks at the environment.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from inferhub import __version__

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter

VERBS = {
    "serve": "Serve models behind an OpenAI-compatible URL, all in one process.",
    "gateway": "Serve the HTTP API; the models run on workers.",
    "worker": "Run models for gateways.",
    "orchestrator": "Look after workers: who is there, what they should load, and how many there are.",
    "chat": "Talk to a model in the terminal.",
    "embed": "Turn texts into vectors.",
    "transcribe": "Turn speech into text.",
    "speak": "Speak a text into a file.",
    "see": "Describe a picture, or answer a question about it.",
    "draw": "Paint a picture, or make one of another.",
    "models": "List models; fetch and verify their weights.",
    "workers": "List the workers of a running server: their models, load and memory.",
    "why": "Explain why a call went where it went.",
    "tenants": "Create, list and disable tenants.",
    "projects": "Create, list and disable projects of tenants.",
    "users": "Create, list and disable people who sign in with OpenID Connect.",
    "keys": "Create, list, rotate and revoke API keys.",
    "limits": "Set and list limits and budgets of tenants, projects and keys.",
    "usage": "Sum up who used how much, and what it cost.",
    "invoice": "Print the bill of a month.",
    "reconcile": "Compare the ledger with what a provider says was used.",
    "audit": "Read and verify the log of every change of the catalog.",
    "apply": "Make the server serve what a hub.yaml says.",
    "config": "Check and explain the settings.",
    "env": "Print the exports that point OpenAI clients at this server.",
    "doctor": "Look for problems on this machine and say how to mend them.",
}
"""In the order of the help. Said again by each verb itself; a test compares."""


class _Verbs(TyperGroup):
    """Knows the verbs by name; imports the file of one when it is called."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        if cmd_name not in VERBS:
            return None
        command: Command = typer.main.get_command(import_module(f"{__name__}.{cmd_name}").app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            from inferhub.settings.nearest import did_you_mean

            ctx.fail(f"No such command '{args[0]}'.{did_you_mean(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


app = typer.Typer(
    cls=_Verbs,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  inferhub serve                          the built-in models on port 8000
  inferhub serve --model ./model.gguf     any GGUF file
  inferhub chat "Say hello."              one answer in the terminal
  inferhub doctor                         when something does not work
\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no server there, 4 the server refused, 130 interrupted.""",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inferhub {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Language, speech and vision models behind one OpenAI-compatible door."""


def main() -> None:
    """Run one verb and leave the process with its exit code."""
    try:
        app(prog_name="inferhub")
    except Exception as error:
        from inferhub.cli._errors import report

        sys.exit(report(error, as_json=_wants_json(sys.argv[1:])))


def _wants_json(arguments: list[str]) -> bool:
    """Also true where the verb could not even read its flags."""
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in flags
