"""Who this host is: joined once with a token, then known by a credential of its own."""

import logging
import re
from pathlib import Path

from fleet.access.sealing import read_or_create_secret
from fleet.access.secrets import digest, new_secret
from fleet.join import Identity, JoinRequest
from fleet.settings import Settings
from worker_host.control_plane import JoinRefused, join
from worker_host.detect import machine
from worker_host.files import write_atomically

log = logging.getLogger("holdfast.host")


class CannotJoin(Exception):
    """The message says what a person must do."""


def host_name(settings: Settings) -> str:
    """The configured name, or the machine's with everything unusual replaced."""
    name = settings.host_name or machine.hostname()
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).strip("-._")[:63] or "host"


def host_folder(settings: Settings) -> Path:
    return settings.home / "hosts" / host_name(settings)


async def identify(settings: Settings) -> Identity:
    """This host's identity; joins if it has none yet.

    The credential is on disk before the join is asked for: if the answer is lost, asking again gives the same host.
    """
    folder = host_folder(settings)
    path = folder / "identity.json"
    if path.exists():
        return Identity.model_validate_json(path.read_text())
    if settings.host_token is None:
        raise CannotJoin(
            f"host {host_name(settings)!r} has not joined yet. Make a token with `holdfast join-token create` "
            "where the API runs and set HOLDFAST_HOST_TOKEN (and HOLDFAST_SERVER to its URL)."
        )
    credential = read_or_create_secret(folder / "credential", new_secret("host"))
    request = JoinRequest(
        token=settings.host_token.get_secret_value(),
        name=host_name(settings),
        machine_id=machine.machine_id(),
        credential_hash=digest(credential),
    )
    try:
        answer = await join(settings.server_url, request)
    except JoinRefused as error:
        raise CannotJoin(f"{settings.server_url} refused the join: {error}") from error
    identity = Identity(
        host_id=answer.host_id,
        name=request.name,
        server=settings.server_url,
        credential=credential,
        temporal=answer.temporal,
    )
    write_atomically(path, identity.model_dump_json(indent=2))
    log.info("joined as %s", identity.host_id)
    return identity
