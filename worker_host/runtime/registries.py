"""Where images come from: mirrors and credentials of this host."""

import stat
from collections.abc import Mapping
from pathlib import Path

from docker import auth
from docker.errors import DockerException

from worker_host.runtime.protocol import CannotStart

_HUB = "docker.io"


class Registries:
    """``credentials``: a file in the form of Docker's ``config.json``. It is read at each pull, so it may change."""

    def __init__(self, mirrors: Mapping[str, str], credentials: Path | None) -> None:
        self._mirrors = mirrors
        self._credentials = credentials

    def sources(self, image: str) -> list[str]:
        """Names under which to ask for ``image``, best first."""
        registry, path = _split(image)
        mirror = self._mirrors.get(registry)
        if mirror is None:
            return [image]
        return [f"{mirror.rstrip('/')}/{path}", image]

    def credentials_for(self, image: str) -> dict[str, str] | None:
        """For Docker's API; None when there are none. Raises CannotStart for a file that others could read."""
        if self._credentials is None or not self._credentials.exists():
            return None
        if self._credentials.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise CannotStart(
                f"cannot pull {image}: others may read the registry credentials in {self._credentials}: "
                "unauthorized until you `chmod 600` it"
            )
        registry, _ = _split(image)
        try:
            config = auth.load_config(str(self._credentials))
            found = config.resolve_authconfig(None if registry == _HUB else registry)
        except (DockerException, ValueError) as error:
            raise CannotStart(
                f"cannot pull {image}: unauthorized: {self._credentials} makes no sense: {type(error).__name__}"
            ) from None
        return dict(found) if found else None


def _split(image: str) -> tuple[str, str]:
    """(registry, the rest)."""
    first, slash, rest = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return _HUB, image if slash else f"library/{image}"


def tagged(image: str) -> tuple[str, str]:
    """(name, tag or digest) of an image's full name."""
    name, at, digest = image.partition("@")
    if at:
        return _without_tag(name), digest
    bare = _without_tag(name)
    return bare, name[len(bare) + 1 :] or "latest"


def _without_tag(name: str) -> str:
    last_part = name.rpartition("/")[2]
    return name[: len(name) - len(last_part) + last_part.index(":")] if ":" in last_part else name
