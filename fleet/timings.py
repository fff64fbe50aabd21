"""How long to wait before believing bad news, in one place.

Part of every workflow's input, so that replays agree and tests can shrink them.
"""

from datetime import timedelta

from fleet.model import Record


class Timings(Record):
    engine_heartbeat: timedelta = timedelta(seconds=60)
    """An engine's end is reported at once; this only covers a host that vanished, which the lease finds first."""
    lease_heartbeat: timedelta = timedelta(seconds=8)
    """A host that has not heartbeaten for so long is suspect."""
    lease_grace: timedelta = timedelta(seconds=8)
    """A suspect host that does not take its lease up again within this is lost."""
    join_grace: timedelta = timedelta(seconds=60)
    """A host that has just registered may take so long to start polling."""
    first_back_off: timedelta = timedelta(seconds=2)
    longest_back_off: timedelta = timedelta(minutes=5)
    stable_after: timedelta = timedelta(minutes=10)
    """An engine that served for so long has earned a clean record."""
    accept: timedelta = timedelta(minutes=15)
    """How long the hosts of a gang may take to get ready for their engines: images are pulled meanwhile."""
    place_retry: timedelta = timedelta(seconds=15)
    """How often an unplaceable instance asks again although nothing told it to."""
    withdraw_pause: timedelta = timedelta(milliseconds=600)
    """Between withdrawing an endpoint and draining its engine: two refreshes of the gateways' tables."""
    drain: timedelta = timedelta(seconds=30)
    """How long an engine may finish requests before it is stopped."""
    surge_patience: timedelta = timedelta(seconds=10)
    """How long a rollout waits for room for a surge replica before it takes the room of an old one."""
    canary_checks: int = 20
    """How often a canary is compared with the old revision while it bakes."""
    breaker_pause: timedelta = timedelta(seconds=60)
    """A host whose replacement is paused asks whether it may go on: soon, and then ever more seldom, but so often."""
    drain_look: timedelta = timedelta(seconds=5)
    """How soon a draining host looks who is left although nothing told it to; then twice as long each time, up to"""
    longest_drain_look: timedelta = timedelta(seconds=60)
    """this."""
    resync: timedelta = timedelta(minutes=10)
    """How often a deployment looks for children that ended without a word."""
    defragment_after: timedelta = timedelta(seconds=60)
    """How old a replica without room must be before others are moved for it by themselves."""
    defragment_again: timedelta = timedelta(minutes=10)
    """How long after a defragmentation that ended without success the next one is begun by itself."""
    most_moves: int = 4
    """More replicas are not moved for one that waits."""
    moves_at_once: int = 1
    move_pause: timedelta = timedelta(seconds=10)
    """Between the end of one move and the beginning of the next."""
    move_look: timedelta = timedelta(seconds=5)
    """How soon a defragmentation looks how far its moves are; then twice as long each time, up to"""
    longest_move_look: timedelta = timedelta(seconds=60)
    """this."""
    move_deadline: timedelta = timedelta(minutes=45)
    """A replica that has not been replaced within this stays where it is: longer than a start may take."""
    batch_heartbeat: timedelta = timedelta(seconds=30)
    """A window of a batch that was not heard of for so long is taken up by another controller."""
    batch_patience: timedelta = timedelta(minutes=10)
    """Then a window gives its place to other batches, and is gone on with later."""
    batch_call_back: timedelta = timedelta(seconds=30)
    """How long requests of a batch that is cancelled or paused may still take until they are given up."""
