"""Where does a replica go? Pure: a request, its needs and the fleet in, a decision or the reasons against out."""

from collections.abc import Collection

from fleet.placement.decision import Decision, Refusal
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Needs
from fleet.placement.reasons import explain
from fleet.placement.request import PlacementRequest
from fleet.placement.search import Search


def place(
    request: PlacementRequest,
    needs: Needs,
    fleet: Fleet,
    *,
    files: Collection[str] | None = None,
    near: Collection[str] = (),
    seed: int = 0,
) -> Decision | Refusal:
    """The best place for one replica, or which filter took which hosts away. ``fleet`` is not changed: see ``take``.

    ``files``: hosts that have the model's files; None: all, or each can fetch them. ``near``: hosts that have them
    already, so that nothing need be fetched. ``seed`` breaks ties: planners that decide at the same time collide less
    often with different ones. The answer is the same for the same fleet, in whatever order its hosts came.
    """
    search = Search(request, needs, fleet, files=files, near=near, seed=seed)
    return search.best() or explain(search)


def replicas_that_fit(
    request: PlacementRequest,
    needs: Needs,
    fleet: Fleet,
    *,
    files: Collection[str] | None = None,
    at_most: int = 1000,
) -> int:
    """So many replicas more could be placed now, one after the other."""
    trial = fleet.copy()
    search = Search(request, needs, trial, files=files)
    for count in range(at_most):
        decision = search.best()
        if decision is None:
            return count
        trial.take(decision)
    return at_most
