"""All commands of ``holdfast`` in one list, and how an error becomes an exit code."""

import os
import sys

import typer

from fleet.cli import (
    audit,
    batches,
    chat,
    defragment,
    deployments,
    doctor,
    drain,
    evaluate,
    gpus,
    hosts,
    instances,
    join_token,
    keys,
    processes,
    providers,
    resync,
    rollouts,
    routes,
    set_host,
    status,
    usage,
)
from fleet.cli.output import print_error
from fleet.cli.setup import WrongUsage
from fleet.errors import HoldfastError

INTERRUPTED = 130
"""What shells use for "ended by Ctrl-C"."""

app = typer.Typer(
    help="Runs AI models on fleets of GPUs and never lets go of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUN = "Run Holdfast"
MODELS = "Deploy and use models"
FLEET = "Look after the fleet"

app.command(rich_help_panel=RUN)(processes.up)
app.command(rich_help_panel=RUN)(processes.api)
app.command(rich_help_panel=RUN)(processes.gateway)
app.command(rich_help_panel=RUN)(processes.relay)
app.command(rich_help_panel=RUN)(processes.controller)
app.command(rich_help_panel=RUN)(processes.host)
app.command(hidden=True)(processes.demo)

app.command(rich_help_panel=MODELS)(deployments.deploy)
app.command("deployments", rich_help_panel=MODELS)(deployments.list_deployments)
app.command(rich_help_panel=MODELS)(deployments.scale)
app.command(rich_help_panel=MODELS)(deployments.stop)
app.command(rich_help_panel=MODELS)(deployments.start)
app.command(rich_help_panel=MODELS)(deployments.restart)
app.command(rich_help_panel=MODELS)(deployments.delete)
app.command(rich_help_panel=MODELS)(rollouts.update)
app.command(rich_help_panel=MODELS)(rollouts.rollout)
app.command(rich_help_panel=MODELS)(rollouts.rollback)
app.command(rich_help_panel=MODELS)(rollouts.revisions)
app.command("instances", rich_help_panel=MODELS)(instances.list_instances)
app.command(rich_help_panel=MODELS)(instances.logs)
app.command(rich_help_panel=MODELS)(instances.retry)
app.add_typer(routes.routes, name="routes", rich_help_panel=MODELS)
app.add_typer(providers.providers, name="providers", rich_help_panel=MODELS)
app.command(rich_help_panel=MODELS)(evaluate.evaluate)
app.command(rich_help_panel=MODELS)(chat.chat)

app.command(rich_help_panel=FLEET)(status.status)
app.command("hosts", rich_help_panel=FLEET)(hosts.list_hosts)
app.command("gpus", rich_help_panel=FLEET)(gpus.list_gpus)
app.command("drain", rich_help_panel=FLEET)(drain.drain)
app.command(rich_help_panel=FLEET)(drain.resume)
app.command("defragment", rich_help_panel=FLEET)(defragment.defragment)
app.command("approve-replacement", rich_help_panel=FLEET)(drain.approve_replacement)
app.command("set-host", rich_help_panel=FLEET)(set_host.set_host)
app.add_typer(join_token.join_token, name="join-token", rich_help_panel=FLEET)
app.add_typer(keys.keys, name="keys", rich_help_panel=FLEET)
app.command("usage", rich_help_panel=FLEET)(usage.usage)
app.add_typer(batches.batches, name="batches", rich_help_panel=MODELS)
app.command("audit", rich_help_panel=FLEET)(audit.audit)
app.command(rich_help_panel=FLEET)(doctor.doctor)
app.command(rich_help_panel=FLEET)(resync.resync)


def run(arguments: list[str]) -> int:
    """Carry out one command line; answers the exit code. Our errors are printed; others, bugs, are raised."""
    try:
        app(args=arguments, prog_name="holdfast")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except HoldfastError as error:
        print_error(error)
        return 2 if isinstance(error, WrongUsage) else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, say) has all it wants; without this, Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0
