"""Who this host is: joined once with a token, then known by a key of its own, on the machine that joined."""

import asyncio
import fcntl
import logging
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from fleet.access.authority import NotOurs, load_private, name_of_host, new_key, signing_request
from fleet.access.sealing import read_or_create_secret
from fleet.access.secrets import digest, new_secret
from fleet.join import Identity, JoinAnswer, JoinRequest, JoinToken
from fleet.relay_address import RelayAddress
from fleet.settings import Settings
from worker_host.control_plane import JoinRefused, join
from worker_host.detect import machine
from worker_host.files import write_atomically
from worker_host.fingerprint import Fingerprint, fingerprint

log = logging.getLogger("holdfast.host")

_LOOK_AGAIN_S = 0.25


class CannotJoin(Exception):
    """The message says what a person must do."""


def host_name(settings: Settings) -> str:
    """The configured name, or the machine's with everything unusual replaced."""
    name = settings.host_name or machine.hostname()
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).strip("-._")[:63] or "host"


def host_folder(settings: Settings) -> Path:
    return settings.home / "hosts" / host_name(settings)


def identity_path(settings: Settings) -> Path:
    return host_folder(settings) / "identity.json"


def relay_address(settings: Settings, joined_at: str = "") -> RelayAddress:
    """Where the relay is now: as set, else where it was when this host joined. Raises CannotJoin."""
    url = settings.relay_of_host if settings.server or not joined_at else joined_at
    try:
        return RelayAddress.parse(url)
    except ValueError as error:
        raise CannotJoin(f"HOLDFAST_SERVER (--server): {error}") from error


async def only_one(settings: Settings) -> TextIO:
    """Holds this host's folder until closed or this process ends; waits for the process that holds it now."""
    folder = host_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("a+")
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                log.warning("another process runs as host %s: waiting for it to end", host_name(settings))
            told = True
            await asyncio.sleep(_LOOK_AGAIN_S)
        else:
            return lock


async def identify(settings: Settings) -> Identity:
    """This host's identity; joins if it has none yet. Raises CannotJoin.

    Key and credential are on disk before the join is asked for: if the answer is lost, asking again gives the same
    host.
    """
    path = identity_path(settings)
    here = await asyncio.to_thread(fingerprint)
    if path.exists():
        return _known(path, here)
    token = _token(settings)
    address = relay_address(settings)
    folder = path.parent
    credential = read_or_create_secret(folder / "credential", new_secret("host"))
    key = _key(folder)
    request = JoinRequest(
        token=token.secret,
        name=host_name(settings),
        machine_id=str(here),
        certificate_request=signing_request(key, name_of_host(host_name(settings))),
        credential_hash=digest(credential),
        version=version("holdfast"),
    )
    try:
        answer = await join(address, token, request)
    except JoinRefused as error:
        raise CannotJoin(f"cannot join at {address.url}: {error}") from error
    identity = _identity(answer, request, address, credential, key)
    write_atomically(path, identity.model_dump_json(indent=2))
    log.info("joined as %s", identity.host_id)
    return identity


def _identity(answer: JoinAnswer, request: JoinRequest, address: RelayAddress, credential: str, key: str) -> Identity:
    return Identity(
        host_id=answer.host_id,
        name=request.name,
        server=address.url,
        machine_id=request.machine_id,
        credential=credential,
        private_key=key,
        certificate=answer.certificate,
        ca=answer.ca,
        namespace=answer.namespace,
        joined_at=datetime.now(UTC),
    )


def _known(path: Path, here: Fingerprint) -> Identity:
    remedy = f"delete {path.parent} and join with a new token (`holdfast join-token create`)"
    try:
        identity = Identity.model_validate_json(path.read_text())
        joined_on = Fingerprint.parse(identity.machine_id)
    except OSError as error:
        raise CannotJoin(f"{path} cannot be read ({error}): restore it, or {remedy}") from error
    except ValueError:  # its words might show what is secret
        raise CannotJoin(f"{path} is damaged: restore it, or {remedy}") from None
    if not here.same_machine(joined_on):
        raise CannotJoin(
            f"{path} was made on another machine, which may still run as {identity.host_id}: this is a copy of its "
            f"disk. To make this machine a host of its own, {remedy}. If its hardware was replaced, do the same, and "
            f"forget the old host (`holdfast hosts`)."
        )
    return identity


def _token(settings: Settings) -> JoinToken:
    if settings.host_token is None:
        raise CannotJoin(
            f"host {host_name(settings)!r} has not joined yet. Make a token with `holdfast join-token create` "
            "where the API runs, and start this with --token (HOLDFAST_HOST_TOKEN) and --server (HOLDFAST_SERVER), "
            "the URL of the relay."
        )
    try:
        return JoinToken.parse(settings.host_token.get_secret_value())
    except ValueError as error:
        raise CannotJoin(f"HOLDFAST_HOST_TOKEN (--token): {error}") from error


def _key(folder: Path) -> str:
    path = folder / "key.pem"
    key = read_or_create_secret(path, new_key().strip())
    try:
        load_private(key)
    except NotOurs as error:
        raise CannotJoin(f"{path}: {error}. Delete {folder} and join with a new token.") from error
    return key
