"""What can be set about a gateway; the defaults are for production, tests shorten the times."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """Times are seconds, sizes are bytes."""

    body_limit: int = 32 << 20
    """Largest request body that is JSON."""
    form_limit: int = 128 << 20
    """Largest with files in it."""
    quick_limit: int = 1 << 20
    """Larger bodies leave the fast path."""
    connect_timeout: float = 3.0
    first_byte_timeout: float = 600.0
    """Until an engine's first reply byte: an answer that is not streamed takes as long as its generation."""
    idle_timeout: float = 300.0
    """Between two bytes of a reply, and for a client that does not read."""
    keep_idle: float = 4.0
    """How long a connection waits for its next request: engines close theirs after 5 s."""
    keep_idle_at_host: float = 60.0
    """The same for one to a host's proxy: that closes them after 75 s, and TLS makes a new one dear."""
    total_timeout: float = 0.0
    """From when a request is sent to an engine to the end of the answer; 0: none."""
    sweep_interval: float = 0.5
    """How often the timeouts above are looked at, and so how exact they are."""
    poll_interval: float = 0.25
    """Between two looks at the change counter of the database."""
    reload_interval: float = 10.0
    """The table is read again after this even if the counter did not move: phases do not move it."""
    traffic_interval: float = 2.0
    """Between two writes of what the engines have answered."""
    return_patience: float = 8.0
    """When no replica can be reached: how long hosts may take to come back. Their process may be being replaced, or
    their tunnel dialled anew."""
    return_interval: float = 0.2
    """Between two attempts to reach them."""
    waiting_at_most: int = 256
    """Requests of one deployment that wait for that; further ones are refused at once."""
    avoid_after: int = 2
    """So many failed connects in a row, and an endpoint is avoided while others exist…"""
    avoid_for: float = 1.0
    """…for so long, doubling up to ``avoid_at_most`` while it goes on failing."""
    avoid_at_most: float = 15.0
