"""The two secrets that a control plane makes on its first start: the admin key and the master key."""

from pathlib import Path

from fleet.access.sealing import Sealer, master_sealer, read_or_create_secret
from fleet.access.secrets import new_secret
from fleet.settings import Settings


def admin_key_file(home: Path) -> Path:
    return home / "admin_key"


def admin_key(settings: Settings) -> str:
    return read_or_create_secret(admin_key_file(settings.home), new_secret("key"))


def master_sealer_of(settings: Settings) -> Sealer:
    """From ``HOLDFAST_MASTER_KEY`` or ``<home>/master_key``; all API and controller processes need the same one."""
    return master_sealer(master_secret(settings))


def master_secret(settings: Settings) -> str:
    if settings.master_key is not None:
        return settings.master_key.get_secret_value()
    return read_or_create_secret(settings.home / "master_key", new_secret("master"))
