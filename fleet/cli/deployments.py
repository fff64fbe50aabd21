"""``deploy``, ``deployments``, ``scale``, ``stop``, ``start``, ``restart``, ``delete``."""

from typing import Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import connect

Json = dict[str, Any]

Name = Annotated[str, typer.Argument(help="Name of the deployment.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is as asked for.")]
Timeout = Annotated[float, typer.Option(help="How long to wait, in seconds.", min=0)]

DEFAULT_TIMEOUT_S = 1800.0
"""As long as an engine's start may take by default."""


def deploy(  # noqa: PLR0917 (options, by name)
    name: Annotated[str | None, typer.Argument(help="Name; also the model's public name.")] = None,
    model: Annotated[str | None, typer.Option(help="File, in the host's models folder or absolute.")] = None,
    replicas: Annotated[int | None, typer.Option(help="How many engines.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto or llama_cpp.")] = None,
    engine_arg: Annotated[list[str] | None, typer.Option(help="Argument for the engine; repeat.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="K=V for the engine, or K from here; repeat.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; repeat.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest context, in tokens.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at a time per replica.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs per replica; 0: CPU only.")] = None,
    cpu_threads: Annotated[int | None, typer.Option(help="Threads of an engine on CPUs.")] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Deployment as JSON; '-': stdin.")] = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Deploy a model and watch it start."""
    from fleet.cli import spec

    options = spec.DeployOptions(
        model=model,
        replicas=replicas,
        engine=engine,
        engine_args=engine_arg or (),
        env=env or (),
        labels=label or (),
        max_model_len=max_model_len,
        concurrency=concurrency,
        gpus=gpus,
        cpu_threads=cpu_threads,
    )
    body = spec.build(name, spec.read_document(file) if file else {}, options)
    deployment = connect().post("/api/v1/deployments", body)
    follow(deployment, wait, timeout, as_json)


def list_deployments(
    name: Annotated[str | None, typer.Argument(help="Show only this one, in full.")] = None,
    label: Annotated[str | None, typer.Option(help="Only those with this key=value.")] = None,
    as_json: AsJson = False,
) -> None:
    """List deployments, or show one."""
    from fleet.cli.client import path_of

    api = connect()
    if name is None:
        found = api.items("/api/v1/deployments", label=label)
        output.print_json(found) if as_json else print_deployments(found)
        return
    deployment = api.get(path_of("deployments", name))
    if as_json:
        output.print_json(deployment)
    else:
        _show(deployment)


def scale(
    name: Name,
    replicas: Annotated[int, typer.Argument(help="How many engines to keep running.", show_default=False)],
    wait: Wait = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Change the number of replicas."""
    from fleet.cli.client import path_of

    deployment = connect().patch(path_of("deployments", name), {"spec": {"replicas": replicas}})
    follow(deployment, wait, timeout, as_json)


def stop(name: Name, wait: Wait = False, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: AsJson = False) -> None:
    """Stop all replicas; the deployment stays."""
    _command(name, "stop", wait, timeout, as_json)


def start(name: Name, wait: Wait = False, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: AsJson = False) -> None:
    """Start a stopped deployment."""
    _command(name, "start", wait, timeout, as_json)


def restart(name: Name, wait: Wait = False, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: AsJson = False) -> None:
    """Replace all replicas, new ones first."""
    _command(name, "restart", wait, timeout, as_json)


def delete(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is gone.")] = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Delete a deployment and stop its replicas."""
    from fleet.cli.client import path_of
    from fleet.cli.progress import wait_gone

    api = connect()
    api.delete(path_of("deployments", name))
    if wait:
        wait_gone(api, name, timeout_s=timeout)
    print(f"{name} {'is gone' if wait else 'is being deleted'}")


def _command(name: str, verb: str, wait: bool, timeout: float, as_json: bool) -> None:
    from fleet.cli.client import path_of

    deployment = connect().post(f"{path_of('deployments', name)}/{verb}")
    follow(deployment, wait, timeout, as_json)


def follow(deployment: Json, wait: bool, timeout: float, as_json: bool) -> None:
    """Watch what was accepted, if asked to, and say how it stands."""
    from fleet.cli.progress import watch

    if wait:
        generation = deployment["status"].get("generation") or 0
        deployment = watch(connect(), deployment["name"], timeout_s=timeout, generation=generation)
    if as_json:
        output.print_json(deployment)
    else:
        status = deployment["status"]
        text = f"{deployment['name']}: {status['phase']}"
        print(f"{text}, {status['message']}" if status.get("message") else text)


def print_deployments(found: list[Json]) -> None:
    output.print_table(
        ["NAME", "PHASE", "READY", "ENGINE", "AGE", "MESSAGE"],
        [
            [
                deployment["name"],
                output.state(deployment["status"]["phase"]),
                _ready(deployment),
                str(deployment["spec"].get("engine", "")),
                output.age(deployment.get("created_at")),
                deployment["status"].get("message") or "",
            ]
            for deployment in found
        ],
        empty="no deployments; make one with `holdfast deploy NAME --model PATH`",
    )


def _rollout(found: Json | None) -> str:
    if not found:
        return ""
    stage = "paused" if found["paused"] else found["stage"]
    return f"{found['strategy']}, {stage}, {found['new_ready_replicas']} new ready, {found['old_replicas']} old"


def _ready(deployment: Json) -> str:
    status = deployment["status"]
    return f"{status.get('ready_replicas', 0)}/{status.get('desired_replicas', 0)}"


def _show(deployment: Json) -> None:
    import json

    status = deployment["status"]
    output.print_fields(
        [
            ("name", deployment["name"]),
            ("phase", output.state(status["phase"])),
            ("ready", _ready(deployment)),
            ("message", status.get("message") or ""),
            ("hint", status.get("hint") or ""),
            ("revision", str(status.get("revision", ""))),
            ("rollout", _rollout(status.get("rollout"))),
            ("labels", " ".join(f"{k}={v}" for k, v in (deployment.get("labels") or {}).items())),
            ("created", f"{output.age(deployment.get('created_at'))} ago"),
            ("workflow", status.get("workflow_url") or ""),
            ("spec", json.dumps(deployment["spec"], indent=2, ensure_ascii=False)),
        ]
    )
