"""``python -m tests.faults.unfenced …`` is ``holdfast …`` with its fences down, to prove that the tests see it.

In this process, and in no other: reports are believed whatever placement they speak of; engines of a lost host may go
on when it returns, and are not told to stop; their memory is free at once, without their host's word.
"""

import sys
from typing import Any

from sqlmodel import Session, select

from fleet import instances
from fleet.cli import main
from fleet.db import claims
from fleet.db.tables import ClaimRow
from fleet.instances import Instance
from fleet.inventory import EngineRef
from worker_host import task_token
from worker_host.supervisor import Supervisor
from worker_host.task_token import Beat, TaskToken


def take_down_fences() -> None:
    instances.accepts = _accepts_anything  # type: ignore[assignment]
    claims.give_up = claims.release = _everything_is_free
    claims.legitimate = _everything_that_was_ever_placed
    Supervisor.keep_only = _let_everything_run  # type: ignore[method-assign, assignment]
    heartbeat = TaskToken.heartbeat

    async def deaf(token: TaskToken, *details: object) -> Beat:
        beat = await heartbeat(token, *details)
        return Beat.ALIVE if beat is Beat.STOP else beat

    task_token.TaskToken.heartbeat = deaf  # type: ignore[method-assign, assignment]


_release = claims.release


def _everything_is_free(session: Session, instance_id: str, fence: int, gone_from: object = None) -> None:
    """Whatever hosts have said."""
    hosts = session.exec(select(ClaimRow.host_id).where(ClaimRow.instance_id == instance_id)).all()
    _release(session, instance_id, fence, gone_from=set(hosts))


def _accepts_anything(instance: Instance, *_: Any) -> bool:
    return instance.placement is not None


def _everything_that_was_ever_placed(session: Session, host_id: str) -> set[EngineRef]:
    rows = session.exec(select(ClaimRow).where(ClaimRow.host_id == host_id)).all()
    return {EngineRef(instance_id=r.instance_id, fence=r.fence) for r in rows}


async def _let_everything_run(_self: Supervisor, _wanted: set[EngineRef], *, at_once: bool = False) -> None:
    return None


if __name__ == "__main__":
    take_down_fences()
    sys.exit(main())
