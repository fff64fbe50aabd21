"""The commands that are processes: ``up``, ``api``, ``gateway``, ``relay``, ``controller``, ``host``."""

import gc
import importlib
import os
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.cli.setup import load_settings
from fleet.errors import HoldfastError, InvalidInput

if TYPE_CHECKING:
    from fleet.settings import Settings


def up(
    demo: Annotated[bool, typer.Option("--demo", help="Deploy the small bundled model and ask it.")] = False,
    exit_: Annotated[bool, typer.Option("--exit", help="Stop everything again once that worked.")] = False,
) -> None:
    """Run all of Holdfast on this machine, until Ctrl-C."""
    from fleet.cli.up import run_up

    raise typer.Exit(run_up(load_settings(), demo=demo, exit_after=exit_))


def api() -> None:
    """Run the management API, with the gateway under /v1."""
    _run("api.serve:main")


def gateway(
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Processes that share the port; HOLDFAST_GATEWAY_WORKERS does the same.",
            show_default="1",
        ),
    ] = None,
) -> None:
    """Run only the inference routes. SIGHUP takes over new code and settings, and breaks nothing off."""
    if workers is not None:
        os.environ["HOLDFAST_GATEWAY_WORKERS"] = str(workers)  # for workers, and after a reload, too
    _run("api.gateway_workers:main")


def relay() -> None:
    """Run the one port that hosts dial."""
    _run("api.relay.serve:main")


def controller() -> None:
    """Run the worker that carries out workflows."""
    _run("workflows.controller:main")


def host(
    server: Annotated[
        str | None, typer.Option(help="URL of the relay; HOLDFAST_SERVER does the same.", show_default=False)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Join token, for the first start; HOLDFAST_HOST_TOKEN does the same.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name for people; the machine's unless given.", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE, for deployments to choose by; repeatable.", show_default=False)
    ] = None,
) -> None:
    """Run this machine as a host of engines."""
    given = {"server": server, "host_token": token, "host_name": name, "host_labels": _labels(label or [])}
    _run("worker_host.main:main", **{option: value for option, value in given.items() if value})


def _labels(given: list[str]) -> dict[str, str]:
    labels = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise InvalidInput(f"{text!r} is no label", field="label", hint="write KEY=VALUE, e.g. --label zone=a")
        labels[key] = value
    return labels


def demo() -> None:
    """What `up --demo` does once everything runs."""
    from fleet.cli.demo import run_demo

    raise typer.Exit(run_demo(load_settings()))


def _run(entry_point: str, **overrides: Any) -> None:
    """By name, because ``fleet`` knows none of the packages that it starts.

    An entry point runs until it is told to end, and answers the exit code.
    """
    settings = load_settings(**overrides)
    entry = _imported(entry_point)
    try:
        code = entry(settings)
    except HoldfastError:
        raise
    except Exception:  # noqa: BLE001 (shown whole; leaving by main() ends the process before the SDK can abort it)
        traceback.print_exc()
        code = 1
    raise typer.Exit(code)


def _imported(entry_point: str) -> "Callable[[Settings], int]":
    """What imports make is there to stay: looking for garbage among it takes a sixth of a start, and later some of each
    collection."""
    module, _, function = entry_point.partition(":")
    gc.disable()
    try:
        entry: Callable[[Settings], int] = getattr(importlib.import_module(module), function)
    finally:
        gc.enable()
    gc.freeze()
    return entry
