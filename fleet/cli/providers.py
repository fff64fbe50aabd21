"""``providers``: other people's APIs that routes may send requests to."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import WrongUsage, connect
from fleet.cli.spec import parse_pairs

Json = dict[str, Any]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Name = Annotated[str, typer.Argument(help="As in `holdfast providers`.", show_default=False)]
KeyFile = Annotated[str | None, typer.Option(metavar="FILE", help="File with its API key; '-': stdin.")]
KeyEnv = Annotated[str | None, typer.Option(metavar="NAME", help="Variable here that holds its API key.")]
Headers = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Sent with every request; repeat.")]
InFlight = Annotated[int | None, typer.Option(help="Requests that one gateway process gives it at a time.", min=1)]

providers = typer.Typer(help="Other people's APIs that routes may send requests to.", invoke_without_command=True)


class Kind(StrEnum):
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@providers.callback()
def list_providers(context: typer.Context, as_json: AsJson = False) -> None:
    """List providers, or do something with one."""
    if context.invoked_subcommand is not None:
        return
    found = connect().items("/api/v1/providers")
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ["NAME", "KIND", "URL", "KEY", "IN FLIGHT", "AGE"],
        [_row(provider) for provider in found],
        empty="no providers; `holdfast providers add NAME --url URL` adds one",
    )


@providers.command("get")
def get_provider(name: Name, as_json: AsJson = False) -> None:
    """Show one; its key is never shown."""
    from fleet.cli.client import path_of

    _show(connect().get(path_of("providers", name)), as_json)


@providers.command("add")
def add_provider(  # noqa: PLR0917 (options, by name)
    name: Annotated[str, typer.Argument(help="By which routes name it.", show_default=False)],
    url: Annotated[str, typer.Option(help="With the version: https://api.example.com/v1", show_default=False)],
    kind: Annotated[Kind, typer.Option(help="What it speaks.")] = Kind.OPENAI,
    key_file: KeyFile = None,
    key_env: KeyEnv = None,
    header: Headers = None,
    in_flight: InFlight = None,
    as_json: AsJson = False,
) -> None:
    """Add a provider. Its key is sealed, and never shown again."""
    spec = {"base_url": url, "kind": kind.value, **_options(key_file, key_env, header, in_flight)}
    made = connect().post("/api/v1/providers", {"name": name, "spec": spec})
    if as_json:
        output.print_json(made)
    else:
        print(f"{name} is added; see whether it answers with `holdfast providers check {name}`")


@providers.command("set")
def set_provider(  # noqa: PLR0917 (options, by name)
    name: Name,
    url: Annotated[str | None, typer.Option(help="With the version.")] = None,
    key_file: KeyFile = None,
    key_env: KeyEnv = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="Forget its key.")] = False,
    header: Headers = None,
    in_flight: InFlight = None,
    as_json: AsJson = False,
) -> None:
    """Change a provider, its key for example; what is not named stays."""
    from fleet.cli.client import path_of

    spec = _options(key_file, key_env, header, in_flight)
    if no_key and "api_key" in spec:
        raise WrongUsage("either a key or --no-key", field="--no-key", hint="leave one of both out")
    spec |= {"api_key": None} if no_key else {}
    spec |= {"base_url": url} if url is not None else {}
    if not spec:
        raise WrongUsage("say what to change", hint="see holdfast providers set --help")
    _show(connect().patch(path_of("providers", name), {"spec": spec}), as_json)


@providers.command("check")
def check_provider(name: Name, as_json: AsJson = False) -> None:
    """Ask it for its models, with its key; 0 if it answers, else 1 with what is wrong."""
    from fleet.cli.client import path_of

    seen = connect().post(f"{path_of('providers', name)}/check")
    if as_json:
        output.print_json(seen)
    elif seen["ok"]:
        print(f"{name} answers in {seen['latency_ms']:.0f} ms; it {'has' if seen['models'] else 'lists no models'}")
        for model in seen["models"]:
            output.console().print(output.plain(f"  {model}"), soft_wrap=True)
    else:
        output.console(stderr=True).print(output.plain(f"{name}: {seen['problem']}", "bold red"), soft_wrap=True)
    if not seen["ok"]:
        raise typer.Exit(1)


@providers.command("delete")
def delete_provider(name: Name) -> None:
    """Delete a provider that no route uses."""
    from fleet.cli.client import path_of

    connect().delete(path_of("providers", name))
    print(f"{name} is deleted")


def _options(key_file: str | None, key_env: str | None, header: list[str] | None, in_flight: int | None) -> Json:
    spec: Json = {}
    if (key := read_key(key_file, key_env)) is not None:
        spec["api_key"] = key
    if header:
        spec["headers"] = {name.lower(): value for name, value in parse_pairs(header, "--header").items()}
    return spec if in_flight is None else {**spec, "in_flight": in_flight}


def read_key(file: str | None, variable: str | None) -> str | None:
    """From where it is kept, so that it is on no command line; None: none was named. Raises WrongUsage."""
    if file is not None and variable is not None:
        raise WrongUsage("either --key-file or --key-env", field="--key-file", hint="leave one of both out")
    if variable is not None and not os.environ.get(variable):
        raise WrongUsage(f"{variable} is not set here", field="--key-env", hint="export it first")
    if variable is not None:
        return os.environ[variable].strip()
    return None if file is None else _read(file)


def _read(file: str) -> str:
    try:
        key = (sys.stdin.read() if file == "-" else Path(file).read_text()).strip()
    except OSError as error:
        raise WrongUsage(f"cannot read {file}: {error.strerror}", field="--key-file") from None
    except UnicodeDecodeError:
        raise WrongUsage(f"{file} holds no text", field="--key-file") from None
    if not key:
        raise WrongUsage(f"{file} is empty", field="--key-file", hint="put the key into it")
    return key


def _row(provider: Json) -> list[str]:
    spec = provider["spec"]
    key = "yes" if spec["has_key"] else "no"
    age = output.age(provider.get("created_at"))
    return [provider["name"], spec["kind"], spec["base_url"], key, str(spec["in_flight"]), age]


def _show(provider: Json, as_json: bool) -> None:
    if as_json:
        output.print_json(provider)
        return
    spec = provider["spec"]
    output.print_fields(
        [
            ("name", provider["name"]),
            ("kind", spec["kind"]),
            ("url", spec["base_url"]),
            ("key", "yes, never shown" if spec["has_key"] else "none"),
            ("headers", " ".join(f"{k}={v}" for k, v in spec["headers"].items())),
            ("in flight", str(spec["in_flight"])),
            ("created", f"{output.age(provider.get('created_at'))} ago"),
            ("changed", f"{output.age(provider.get('updated_at'))} ago"),
        ]
    )
