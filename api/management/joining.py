"""How a machine becomes a host: the same join token as a command, a container, a service and a cloud machine's data."""

import ipaddress
import shlex
import textwrap
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from string import Template
from urllib.parse import urlsplit

from pydantic import BaseModel

from fleet.settings import Settings


class JoinCommands(BaseModel):
    process: str
    """Shell: run it in the foreground, where Holdfast is installed."""
    container: str
    """Shell: run it in a container that starts engines in others."""
    systemd: str
    """Shell, as root: install it as a service."""
    cloud_init: str
    """User data of a cloud machine."""


def join_commands(settings: Settings, token: str) -> JoinCommands:
    server = settings.relay_for_hosts
    return JoinCommands(
        process=f"holdfast host --server {shlex.quote(server)} --token {shlex.quote(token)}",
        container=_container(settings, server, token),
        systemd=(script := _script(settings, server, token)),
        cloud_init=_filled("cloud-init/holdfast-host.yaml", script=textwrap.indent(script, " " * 6).rstrip()),
    )


def note(settings: Settings) -> str:
    """What stands in the way of other machines; empty: nothing that we know of."""
    if not _is_loopback(urlsplit(settings.relay_for_hosts).hostname or ""):
        return ""
    return (
        f"hosts on other machines cannot reach {settings.relay_for_hosts}: start `holdfast relay` with "
        "HOLDFAST_RELAY_BIND=0.0.0.0, and the API with HOLDFAST_RELAY_URL=https://<its address>:<port>"
    )


def _container(settings: Settings, server: str, token: str) -> str:
    image = settings.host_image or f"holdfast:{version('holdfast')}"
    # The folder has one name inside and outside: engines are started by the machine's Docker, with its paths. With the
    # machine's process ids the host sees its engines also while Docker is away. Only root may use the socket.
    return f"""docker run -d --name holdfast-host --restart unless-stopped --stop-timeout 60 \\
  --user 0 --network host --pid host \\
  $(if command -v nvidia-smi >/dev/null; then echo --gpus all; fi) \\
  $(if [ -s /etc/machine-id ]; then echo -v /etc/machine-id:/etc/machine-id:ro; fi) \\
  -v /var/run/docker.sock:/var/run/docker.sock \\
  -v /var/lib/holdfast:/var/lib/holdfast -e HOLDFAST_HOME=/var/lib/holdfast \\
  -e HOLDFAST_SERVER={shlex.quote(server)} \\
  -e HOLDFAST_HOST_TOKEN={shlex.quote(token)} \\
  {shlex.quote(image)} host"""


def _script(settings: Settings, server: str, token: str) -> str:
    return _filled(
        "systemd/install-host.sh",
        package=shlex.quote(settings.host_package or f"holdfast=={version('holdfast')}"),
        environment=f"HOLDFAST_SERVER={_env_value(server)}\nHOLDFAST_HOST_TOKEN={_env_value(token)}",
        unit=_template("systemd/holdfast-host.service").rstrip(),
    )


def _env_value(text: str) -> str:
    """As systemd reads it from a file."""
    return '"' + "".join(f"\\{c}" if c in '"\\$`' else c for c in text) + '"'


def _filled(name: str, **values: str) -> str:
    return Template(_template(name)).substitute(values)


@cache
def _template(name: str) -> str:
    return files("deploy").joinpath(name).read_text()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
