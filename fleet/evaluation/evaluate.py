"""Would a model run, where, how often, and at what price? Pure: it changes and asks nothing."""

from collections.abc import Iterable

from fleet.evaluation.answer import ClassView, Evaluation, MaxReplicas
from fleet.evaluation.capacity import Capacity, Tally
from fleet.evaluation.case import NAME, Case, Ground, case_of
from fleet.evaluation.messages import catalog_messages, fleet_messages
from fleet.evaluation.question import Question
from fleet.evaluation.rent import Rental, rank, rentals
from fleet.evaluation.scene import Cards
from fleet.evaluation.views import answer, class_view
from fleet.inventory import AcceleratorKind
from fleet.placement.decision import Refusal
from fleet.placement.fleet import Fleet
from fleet.placement.place import place
from fleet.placement.request import PlacementRequest
from fleet.placement.search import Search
from fleet.sizing.facts import ModelFacts

_MOST_PLACED = 16
"""So many replicas are placed in thought, to say why one more finds no place."""
_NOTHING = Refusal((), ())


def evaluate(question: Question, facts: ModelFacts, ground: Ground) -> Evaluation:
    case = case_of(question, facts, ground)
    return _on_fleet(case, ground.fleet) if ground.fleet is not None else _on_catalog(case)


# -- on hosts ----------------------------------------------------------------------------------------------------------


def _on_fleet(case: Case, fleet: Fleet) -> Evaluation:
    views = _counted(case, fleet)
    if case.question.spec.placement.multi_host and _now(views) < case.question.wanted:
        case = case.over_several_hosts()
        views = _counted(case, fleet)
    most = MaxReplicas(now=_now(views), if_empty=sum(v.replicas_if_empty for v in views))
    refusal = _refusal(case, fleet, _now(views))
    told = fleet_messages(case.question.wanted, most, views, refusal.filters, refusal.reasons)
    return answer(case, fits=_now(views) >= case.question.wanted, views=views, most=most, refusal=refusal, told=told)


def _now(views: Iterable[ClassView]) -> int:
    return sum(view.replicas_now for view in views)


def _counted(case: Case, fleet: Fleet) -> list[ClassView]:
    tally = Tally(Search(_request(case), case.needs, fleet, files=case.ground.files))
    return [_on_hosts(case, cards, tally) for cards in case.cards]


def _on_hosts(case: Case, cards: Cards, tally: Tally) -> ClassView:
    found = tally.in_ram() if cards.gpu.kind is AcceleratorKind.CPU else tally.on_cards(cards.gpu)
    best = max((c.capacity for c in found), key=lambda c: (c.now, c.empty), default=Capacity(0, 0))
    return class_view(case, cards, found, best)


def _request(case: Case) -> PlacementRequest:
    return PlacementRequest(
        instance_id=f"{NAME}/1", deployment=NAME, fence=1, spec=case.kind.spec, labels=case.question.labels
    )


def _refusal(case: Case, fleet: Fleet, now: int) -> Refusal:
    """Why there is no room for another replica; empty where that is not asked, or too many find room before."""
    if now >= case.question.wanted or now > _MOST_PLACED:
        return _NOTHING
    request, trial = _request(case), fleet.copy() if now else fleet
    for _ in range(now + 1):
        decision = place(request, case.needs, trial, files=case.ground.files)
        if isinstance(decision, Refusal):
            return decision
        trial.take(decision)
    return _NOTHING


# -- on machines that can be rented ------------------------------------------------------------------------------------


def _on_catalog(case: Case) -> Evaluation:
    views = sorted((_on_machines(case, cards) for cards in case.cards), key=_price)
    told = catalog_messages(case.question.wanted, views)
    return answer(
        case, fits=any(v.rentals for v in views), views=views, most=MaxReplicas(), refusal=_NOTHING, told=told
    )


def _on_machines(case: Case, cards: Cards) -> ClassView:
    fits = case.fits.get(cards.gpu, ())
    found = [r for fit in fits if fit.asked for r in rentals(cards.machines, fit.asked, case.question.wanted)]
    view = class_view(case, cards, (), Capacity(0, 0))
    return view.model_copy(update={"rentals": _cheapest_of_each(found)})


def _cheapest_of_each(found: Iterable[Rental]) -> list[Rental]:
    """Of each type of machine the shape that costs least on it."""
    best: dict[tuple[str, str], Rental] = {}
    for rental in found:
        known = best.get((rental.cloud, rental.instance_type))
        if known is None or rank(rental) < rank(known):
            best[rental.cloud, rental.instance_type] = rental
    return sorted(best.values(), key=rank)


def _price(view: ClassView) -> tuple[bool, tuple[object, ...]]:
    return (not view.rentals, rank(view.rentals[0]) if view.rentals else ())
