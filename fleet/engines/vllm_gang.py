"""vLLM over several hosts: with its own processes, or with Ray where a person asks for it. Pure."""

import shlex
from pathlib import Path

from fleet.engines.adapter import Start
from fleet.engines.environment import me, rendezvous
from fleet.engines.flags import Given


def launch(argv: tuple[str, ...], start: Start, given: Given) -> tuple[str, ...]:
    """``argv``, made the leader's or a follower's. Raises Unstartable."""
    if not start.is_gang:
        return argv
    if given.text("--distributed-executor-backend") == "ray":
        return _ray(argv, start)
    address, port = rendezvous(start)
    me(start)
    part = ["--nnodes", str(len(start.members)), "--node-rank", str(start.rank)]
    part += ["--master-addr", address, "--master-port", str(port)]
    return (*argv, *part, *(["--headless"] if start.rank else []))


def _ray(argv: tuple[str, ...], start: Start) -> tuple[str, ...]:
    """Followers lend their cards to the leader's Ray, in which vLLM itself waits for as many as it needs."""
    address, port = rendezvous(start)
    ray = (str(_beside(start.binary, "ray")), "start", "--node-ip-address", me(start).address)
    cards = ("--num-gpus", str(len(start.gpu_uuids)), "--disable-usage-stats")
    if start.rank:
        return (*ray, *cards, "--block", "--address", f"{address}:{port}")
    head = (*ray, *cards, "--head", "--port", str(port), "--include-dashboard=false")
    # The server takes the shell's place, so that signals reach it; Ray's daemons end with its process group.
    return ("/bin/sh", "-c", f'{shlex.join(head)} && exec "$0" "$@"', *argv)


def _beside(binary: Path, name: str) -> Path:
    """Of the same environment, or on the PATH as the program itself is."""
    return binary.with_name(name) if binary.is_absolute() else Path(name)
