"""Evaluations: would a model run, where, how often, and at what price? Nothing is kept or changed."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, FastAPI, Request, Response

from api.management.evaluating import Evaluator
from api.state import AdminDep, ServicesDep
from fleet.evaluation.answer import Evaluation
from fleet.evaluation.question import Question
from fleet.hub_facts import HubFacts

router = APIRouter(prefix="/evaluations", tags=["evaluations"])


def evaluator_of(request: Request, services: ServicesDep) -> Evaluator:
    """Made when it is first asked for: many processes never are."""
    state = request.app.state
    known: Evaluator | None = getattr(state, "evaluator", None)
    if known is None or known.services is not services:
        state.evaluator = known = Evaluator(services, HubFacts.of_settings(services.settings))
    return known


async def close(app: FastAPI) -> None:
    known: Evaluator | None = getattr(app.state, "evaluator", None)
    if known is not None:
        await known.aclose()


EvaluatorDep = Annotated[Evaluator, Depends(evaluator_of)]
_EXAMPLES = [
    {"spec": {"model": {"source": "huggingface", "repo": "Qwen/Qwen3-8B"}, "max_model_len": 32768}, "replicas": 2},
    {
        "spec": {"model": {"source": "huggingface", "repo": "Qwen/Qwen3-32B"}, "concurrency": 16},
        "against": {"inventory": {"hosts": [{"name": "a", "count": 2, "gpus": [{"type": "L40S", "count": 4}]}]}},
    },
]


@router.post("", summary="Would a model run, where, how often, and at what price?", response_model=Evaluation)
async def create(
    body: Annotated[Question, Body(examples=_EXAMPLES)], evaluator: EvaluatorDep, _admin: AdminDep
) -> Response:
    """Predicts what a replica takes on each class of cards of the fleet, of a fleet that you describe, or of machines
    that clouds rent out. Of models on hubs only configuration and headers are read. Nothing is kept or changed.

    503: a hub, or the hosts that should have the model, do not answer now.
    """
    said = await evaluator.answer(body)
    # It is valid, and checking tens of kilobytes once more would take longer than working it out.
    return Response(said.model_dump_json(), media_type="application/json")
