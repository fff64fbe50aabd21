"""The management API: one FastAPI application."""

from importlib.metadata import version

from fastapi import APIRouter, FastAPI

from api import docs, problems
from api.management import access, deployments, drains, gpus, host_agents, hosts, instances, rollouts, system
from api.state import Services

_DESCRIPTION = """Runs AI models on fleets of GPUs and never lets go of them.

Send `Authorization: Bearer <key>`. Errors are problem documents (RFC 9457) that name the field and the remedy.
The OpenAI API is under `/v1`.
"""
_GROUPS = ("deployments", "rollouts", "instances", "hosts", "gpus", "access", "system", "host workers")


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
    problems.install(app)
    v1 = APIRouter(prefix="/api/v1")
    # Before the routes with a host id in the path, which would take "join" for one.
    v1.include_router(host_agents.router)
    for router in (
        deployments.router,
        rollouts.router,
        instances.router,
        instances.of_deployment,
        hosts.router,
        drains.router,
        gpus.router,
        access.router,
        system.v1,
    ):
        v1.include_router(router)
    app.include_router(v1)
    app.include_router(system.router)
    docs.install(app)
    return app
