"""Why a decision does not become a claim."""


class ClaimLost(Exception):
    """The room was there when we looked and is gone now, or a host changed: look again."""

    def __init__(self, message: str, hosts: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.hosts = hosts
        """Those of which something else is true by now; empty: not known."""


class StaleFence(Exception):
    """A newer placement of the same instance exists, under ``newest``."""

    def __init__(self, newest: int) -> None:
        super().__init__(f"placed again under fence {newest}")
        self.newest = newest
