"""What deciding about a request needs to know of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ask:
    tenant: str = ""
    """Who asks: tenants share what there is fairly."""
    priority: int = 0
    """Higher ones are served first; below 0: what may be shed first."""
    prompt_tokens: int = 0
    """Estimated."""
    new_tokens: int = 0
    """Estimated, that the answer will have."""
    prefix: tuple[int, ...] = ()
    """One hash for each block of the beginning of the prompt, each over all up to it; empty: not known."""
    session: str = ""
    """Requests of one session are better off at one replica; empty: of none."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.new_tokens
