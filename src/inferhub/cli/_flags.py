"""Flags that several verbs share, and the flags that are settings.

A setting has one name, one help and one check, in `settings.model`; here it only becomes a flag.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Url = Annotated[
    str | None,
    typer.Option("--url", help="The server; otherwise OPENAI_BASE_URL, else host and port of the settings."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", help="An API key of the server; otherwise OPENAI_API_KEY (safer: `ps` shows flags)."
    ),
]

STORAGE = ("config", "data_dir", "catalog_url", "pepper_file")
"""Settings of verbs that open the catalog."""
WEIGHTS = ("config", "cache_dir", "weights_mirror")
"""Settings of verbs that handle weights."""
PLACES = (
    "config", "host", "port", "metrics_host", "metrics_port", "data_dir", "cache_dir", "catalog_url",
    "spec_file", "pepper_file",
)  # fmt: skip
"""Settings of verbs that look at everything; the others reach them by file or environment."""
ALIASES = {"spec_file": ("--spec",), "worker_listen": ("--listen",), "orchestrator_listen": ("--listen",)}


def new_app(**options: Any) -> typer.Typer:
    """A verb's own Typer; all verbs print their help the same plain way."""
    context = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings=context,
        **options,
    )


def with_settings(names: Iterable[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb a flag for each setting; it receives those that were given as `flags`."""
    extra = [_parameter(name) for name in names]

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(verb, eval_str=True).parameters.values()

        shown = [parameter for parameter in own if parameter.name != "flags"] + extra

        def command(**values: Any) -> None:
            flags: Mapping[str, Any] = {parameter.name: values.pop(parameter.name) for parameter in extra}
            verb(**values, flags=flags)

        # What Typer reads; not `functools.wraps`, which would lead it to the verb's own parameters.
        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        vars(command)["__signature__"] = inspect.Signature(shown)
        return command

    return decorate


def setting_names(*, without: Iterable[str]) -> tuple[str, ...]:
    """Every setting but `without`; secrets only as files, because everybody can read a command line."""
    from inferhub.settings.model import SECRETS, Settings

    names = (f"{name}_file" if name in SECRETS else name for name in Settings.model_fields)
    return tuple(name for name in names if name not in set(without))


def _parameter(name: str) -> inspect.Parameter:
    from inferhub.settings.describe import allowed_values, default_text
    from inferhub.settings.model import LISTS, SECRETS, Settings

    flag = "--" + name.replace("_", "-")
    if name.removesuffix("_file") in SECRETS:
        secret = name.removesuffix("_file")
        help_text = f"File that holds the setting `{secret}`. {Settings.model_fields[secret].description}"
        kind: Any = Annotated[str | None, typer.Option(flag, help=help_text, metavar="PATH")]
    elif Settings.model_fields[name].annotation is bool:
        help_text = _help(name, default_text(name))
        kind = Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text)]
    elif name in LISTS:
        help_text = f"{_help(name, 'none')} May be repeated."
        kind = Annotated[
            list[str] | None,
            typer.Option(flag, *ALIASES.get(name, ()), help=help_text, metavar=_metavar(name)),
        ]
    else:
        help_text = f"{_help(name, default_text(name))}"
        assert allowed_values(name)  # noqa: S101 - each setting says what it allows
        kind = Annotated[
            str | None, typer.Option(flag, *ALIASES.get(name, ()), help=help_text, metavar=_metavar(name))
        ]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _help(name: str, default: str) -> str:
    from inferhub.settings.model import Settings

    return f"{Settings.model_fields[name].description} [default: {default.replace('`', '')}]"


def _metavar(name: str) -> str:
    from inferhub.settings.describe import allowed_values

    allowed = allowed_values(name)
    if allowed.startswith("a whole number"):
        return "N"
    if allowed.startswith("a number"):
        return "SECONDS"
    if "HOST:PORT" in allowed:
        return "HOST:PORT"
    if allowed == "a path":
        return "PATH"
    return allowed.replace(", ", "|") if "," in allowed and " " not in allowed.replace(", ", "") else "TEXT"
