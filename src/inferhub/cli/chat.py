"""`inferhub chat`: one answer, or a conversation. Ctrl-C stops the answer, not the conversation."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from inferhub.cli._context import client_for, server_errors
from inferhub.cli._errors import ServerRefused, printable
from inferhub.cli._flags import Json, Key, Url, new_app
from inferhub.cli._output import print_json
from inferhub.core.errors import InferHubError, ModelNotFound, SetupError

if TYPE_CHECKING:
    from inferhub.client import Client
    from inferhub.modalities.chat import ChatRequest, Message

app = new_app()


@dataclass
class _Conversation:
    """What stays the same from turn to turn, and what was said so far."""

    client: Client
    model: str
    max_tokens: int | None
    temperature: float | None
    messages: list[Message] = field(default_factory=list)

    def request(self) -> ChatRequest:
        from inferhub.modalities.chat import ChatRequest

        return ChatRequest(
            model=self.model,
            messages=list(self.messages),
            max_completion_tokens=self.max_tokens,
            temperature=self.temperature,
        )

    def say(self, role: str, text: str) -> None:
        from inferhub.modalities.chat import Message

        self.messages.append(Message(role=role, content=text))  # type: ignore[arg-type]


@app.command(
    epilog="""\b
Examples:
  inferhub chat "Say hello."
  inferhub chat                              a conversation; /clear forgets, Ctrl-D ends it
  git diff | inferhub chat "Explain this."   standard input follows the prompt
  inferhub chat --model smollm2-135m --json "Say hello." """
)
def chat(
    prompt: Annotated[str | None, typer.Argument(help="What to say; without it, a conversation.")] = None,
    *,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Otherwise the server's first chat model.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="Instructions that come before the conversation.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 is the most predictable.")
    ] = None,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Talk to a model in the terminal.

    The answer appears as it is made. With --json the whole answer is printed at once, as the API
    gives it.
    """
    said = _prompt(prompt)
    if json and said is None:
        raise typer.BadParameter("a conversation has no JSON form; give a prompt.", param_hint="--json")
    client = client_for(url, key)
    with asyncio.Runner() as runner:
        runner.run(client.__aenter__())
        try:
            with server_errors():
                name = model or runner.run(_first_chat_model(client))
                _talk(runner, _Conversation(client, name, max_tokens, temperature), system, said, whole=json)
        finally:
            runner.run(client.__aexit__(None, None, None))


def _talk(
    runner: asyncio.Runner, talk: _Conversation, system: str | None, said: str | None, *, whole: bool
) -> None:
    if system:
        talk.say("system", system)
    if said is None:
        _converse(runner, talk)
        return
    talk.say("user", said)
    runner.run(_print_whole(talk) if whole else _print_answer(talk))


def _prompt(argument: str | None) -> str | None:
    """The argument and what is piped in; None when somebody sits at the keyboard and said nothing yet."""
    if sys.stdin.isatty():
        return argument
    piped = sys.stdin.read().strip()
    said = "\n\n".join(part for part in (argument, piped) if part)
    if not said:
        raise SetupError("Nothing to say: the prompt and standard input are both empty.", param="prompt")
    return said


async def _first_chat_model(client: Client) -> str:
    cards = await client.models()
    for card in cards:
        if "chat" in card.modalities:
            return card.id
    offered = ", ".join(card.id for card in cards) or "none"
    raise ModelNotFound(f"The server has no chat model ready; its models: {offered}.")


def _converse(runner: asyncio.Runner, talk: _Conversation) -> None:
    import readline  # noqa: F401 - gives `input` editing and a history

    print(f"{printable(talk.model)} — Ctrl-C stops an answer, /clear forgets, Ctrl-D ends.")
    while True:
        try:
            said = input("> ").strip()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if said in ("/exit", "/quit"):
            return
        if said == "/clear":
            talk.messages = [m for m in talk.messages if m.role == "system"]
        elif said:
            _turn(runner, talk, said)


def _turn(runner: asyncio.Runner, talk: _Conversation, said: str) -> None:
    """One question and its answer. A failure is told, and the question is taken back."""
    from inferhub.cli._errors import report

    talk.say("user", said)
    before = len(talk.messages)
    try:
        runner.run(_print_answer(talk))
    except KeyboardInterrupt:
        print(" [stopped]")
    except InferHubError as error:
        print()
        report(ServerRefused(error), as_json=False)
    if len(talk.messages) == before:
        talk.messages.pop()


async def _print_answer(talk: _Conversation) -> None:
    """Stream one answer; what was said before an interruption stays part of the conversation."""
    said: list[str] = []
    try:
        async with talk.client.stream_chat(talk.request()) as chunks:
            async for chunk in chunks:
                for choice in chunk.choices:
                    text = choice.delta.content or choice.delta.refusal or ""
                    said.append(text)
                    sys.stdout.write(printable(text))
                    sys.stdout.flush()
        print()
    finally:
        if any(said):
            talk.say("assistant", "".join(said))


async def _print_whole(talk: _Conversation) -> None:
    from msgspec import to_builtins

    print_json(to_builtins(await talk.client.chat(talk.request())))
