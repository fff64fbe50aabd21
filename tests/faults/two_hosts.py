"""``python -m tests.faults.two_hosts …`` is ``holdfast …`` whose placement makes a gang of any two hosts without GPUs.

In this process, and in no other, sizing is not asked whether a replica needs several hosts: two always make one.
"""

import sys

from sqlmodel import Session, select

from activities.placement import PlacementActivities
from fleet.cli import main
from fleet.db import claims
from fleet.db.tables import HostRow
from fleet.placement.request import Member, Placement, PlacementRequest, PlaceResult, Unplaceable
from fleet.states import HostState

MEMORY = 400 << 20
_FIRST_PORT = 20_000


def place_on_two_hosts() -> None:
    async def place(self: PlacementActivities, request: PlacementRequest) -> PlaceResult:
        try:
            return await self._database.awrite(lambda s: _placed(s, request))
        except claims.ClaimLost as lost:
            return PlaceResult(unplaceable=Unplaceable(reasons=(str(lost),)))

    PlacementActivities._place = place  # type: ignore[method-assign]


def _placed(session: Session, request: PlacementRequest) -> PlaceResult:
    ready = session.exec(select(HostRow).where(HostRow.state == HostState.READY).order_by(HostRow.name)).all()
    # As placement does: hosts on which it has failed come last.
    hosts = sorted(ready, key=lambda host: host.id in request.excluded_hosts)[:2]
    if len(hosts) < 2:
        return PlaceResult(unplaceable=Unplaceable(reasons=("a gang needs two hosts",)))
    leader, follower = (_member(host, request) for host in hosts)
    placement = Placement(**leader.model_dump(), memory_bytes=MEMORY, followers=(follower,))
    generations = {host.id: host.generation for host in hosts}
    claims.claim(session, request.instance_id, request.fence, placement, generations)
    return PlaceResult(placement=placement)


def _member(host: HostRow, request: PlacementRequest) -> Member:
    """Each fence has its own port: that of the last one may not be given back yet."""
    return Member(
        host_id=host.id,
        ports=(_FIRST_PORT + request.fence,),
        address=host.fabric_address,
        model_path=request.spec.model_path,
    )


if __name__ == "__main__":
    place_on_two_hosts()
    sys.exit(main())
