"""What the verbs share that run a service: the spec to serve, progress while loading, the banner."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from inferhub import __version__
from inferhub.cli._context import load, read_text
from inferhub.cli._descriptors import raise_limit
from inferhub.cli._output import console, print_json
from inferhub.core.errors import SetupError

if TYPE_CHECKING:
    from rich.status import Status

    from inferhub.assembly import Ready
    from inferhub.settings import Loaded, Settings
    from inferhub.supervisor.messages import Announced


class Service(Protocol):
    """One of `assembly.serve`, `assembly.gateway`, `assembly.worker`."""

    def __call__(
        self,
        loaded: Loaded,
        spec_text: str | None,
        *,
        announce: Callable[[Ready], None],
        on_progress: Callable[[str], None],
    ) -> Coroutine[Any, Any, None]: ...


def run_service(service: str, flags: Mapping[str, Any], *, as_json: bool, model: Path | None = None) -> None:
    """Run until a signal. Raises `SetupError` and its kinds when it cannot start."""
    from inferhub import assembly
    from inferhub.process import run
    from inferhub.telemetry.logging import configure_logging

    loaded = load(flags)
    settings = loaded.settings
    configure_logging(settings.log_level, settings.log_format)
    raise_limit(settings.max_inflight)
    text = spec_text(settings, model)
    herald = Herald(service, settings, as_json=as_json)
    start: Service = getattr(assembly, service)
    with herald:
        run(start(loaded, text, announce=herald.announce, on_progress=herald.loading))


def spec_text(settings: Settings, model: Path | None) -> str | None:
    """The `hub.yaml` that was named on the command line or in the settings, if any."""
    if model is None:
        return read_text(settings.spec_file) if settings.spec_file else None
    if settings.spec_file:
        raise SetupError("Both a model and a spec file are given; keep one of them.", param="model")
    from inferhub.settings.spec import spec_text_for_model

    path = Path.absolute(model.expanduser())
    if not path.is_file():
        raise SetupError(f"There is no file {path}.", param="model")
    return spec_text_for_model(path)


class Herald:
    """Tells what happens between the start and the first request: on a terminal alive, else line by line."""

    def __init__(self, service: str, settings: Settings, *, as_json: bool) -> None:
        self._service = service
        self._as_json = as_json
        self._orchestrators = settings.orchestrator
        self._console = console(settings.color)
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if not self._as_json and self._console.is_terminal:
            self._status = self._console.status("Starting")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def loading(self, model: str) -> None:
        if self._status is not None:
            self._status.update(f"Loading [bold]{model}[/]")
        elif not self._as_json:
            print(f"Loading {model}", flush=True)

    def announce(self, ready: Ready | Announced, processes: Sequence[int] = ()) -> None:
        self.__exit__()
        if self._as_json:
            print_json(
                {
                    "service": self._service,
                    "version": __version__,
                    "url": ready.url,
                    "ops_url": ready.ops_url,
                    "models": list(ready.models),
                    "admin_key": ready.admin_key,
                    **({"processes": processes} if processes else {}),
                }
            )
        elif self._service == "worker":
            print(worker_banner(ready, self._orchestrators), flush=True)
        elif self._service == "orchestrator":
            print(orchestrator_banner(ready), flush=True)
        else:
            print(banner(ready), flush=True)
        sys.stdout.flush()


def worker_banner(ready: Ready | Announced, orchestrators: Sequence[str]) -> str:
    models = ", ".join(ready.models) or "nothing yet; gateways say what to load"
    lines = [
        f"InferHub {__version__} worker: {models}",
        f"  listens on  {ready.url}",
        f"  metrics     {ready.ops_url}/metrics",
    ]
    if orchestrators:
        lines.append(f"  registers   {', '.join(orchestrators)}")
    else:
        lines += ["", "On the gateway's machine:", f"  inferhub gateway --worker {ready.url}"]
    return "\n".join(lines) + "\n"


def orchestrator_banner(ready: Ready | Announced) -> str:
    return f"""InferHub {__version__} orchestrator
  listens on  {ready.url}
  metrics     {ready.ops_url}/metrics

On the machines with models, and where clients come in:
  inferhub worker --orchestrator {ready.url}
  inferhub gateway --orchestrator {ready.url}
"""


def banner(ready: Ready | Announced) -> str:
    """The address, the key if it is new, and three lines to copy that work as they stand."""
    api = f"{ready.url}/v1"
    key = ready.admin_key
    lines = [
        f"InferHub {__version__} serves {', '.join(ready.models) or 'no model yet'}",
        f"  API      {api}",
        f"  pages    {ready.url}/docs",
        f"  metrics  {ready.ops_url}/metrics",
    ]
    if key:
        lines.append(f"  admin key, shown only now: {key}")
    lines += ["", "Copy one of these:", *(f"  {line}" for line in copy_lines(api, key, ready.chat_model))]
    if not key:
        lines.append("  (no key at hand? `inferhub keys create NAME`)")
    return "\n".join(lines) + "\n\nCtrl-C stops it.\n"


def copy_lines(api: str, key: str | None, chat_model: str | None) -> tuple[str, str, str]:
    """curl, Python, exports. Without a key they read it from OPENAI_API_KEY."""
    model = chat_model or "MODEL"
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Say hello."}}]}}'
    bearer = key or "$OPENAI_API_KEY"
    curl = (
        f'curl {api}/chat/completions -H "Authorization: Bearer {bearer}" '
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
    arguments = f'base_url="{api}"' + (f', api_key="{key}"' if key else "")
    create = f'model="{model}", messages=[{{"role": "user", "content": "Say hello."}}]'
    answer = f"OpenAI({arguments}).chat.completions.create({create})"
    code = f"from openai import OpenAI; print({answer}.choices[0].message.content)"
    exports = f"export OPENAI_BASE_URL={api}" + (f" OPENAI_API_KEY={key}" if key else "")
    return curl, f"python -c {shlex.quote(code)}", exports
