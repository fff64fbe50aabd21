"""The management API: one FastAPI application."""

from importlib.metadata import version

from fastapi import APIRouter, FastAPI

from api import docs, problems
from api.auditing import Audited
from api.management import (
    access,
    audit,
    batches,
    defragment,
    deployments,
    drains,
    evaluations,
    gpus,
    hosts,
    instances,
    providers,
    rollouts,
    routes,
    system,
    usage,
)
from api.state import Services

_DESCRIPTION = """Runs AI models on fleets of GPUs and never lets go of them.

Send `Authorization: Bearer <key>`. Errors are problem documents (RFC 9457) that name the field and the remedy.
The OpenAI API is under `/v1`.
"""
_GROUPS = (
    *("deployments", "rollouts", "instances", "routes", "providers", "hosts", "gpus", "evaluations", "batches"),
    *("access", "usage", "audit", "system"),
)


def create_app(services: Services) -> FastAPI:
    app = FastAPI(
        title="Holdfast",
        version=version("holdfast"),
        description=_DESCRIPTION,
        openapi_tags=[{"name": name} for name in _GROUPS],
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    app.add_middleware(Audited)
    problems.install(app)
    v1 = APIRouter(prefix="/api/v1")
    for router in (
        deployments.router,
        rollouts.router,
        defragment.router,
        instances.router,
        instances.of_deployment,
        hosts.router,
        drains.router,
        gpus.router,
        routes.router,
        providers.router,
        evaluations.router,
        batches.router,
        access.router,
        usage.router,
        audit.router,
        system.v1,
    ):
        v1.include_router(router)
    app.include_router(v1)
    app.include_router(system.router)
    docs.install(app)
    return app
