"""Health, version and metrics of the control plane itself."""

from importlib.metadata import version

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from pydantic import BaseModel
from sqlalchemy import func
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, select

from api.management import fleet_metrics
from api.resync import Outcome, lost, resync
from api.state import AdminDep, ServicesDep
from fleet.db import registry
from fleet.db.tables import DeploymentRow, HostRow, InstanceRow

router = APIRouter(tags=["system"])
v1 = APIRouter(prefix="/system", tags=["system"])

Counts = dict[str, dict[str, int]]


@router.get("/healthz", summary="Is this process alive?")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Can it do its work?")
async def readyz(services: ServicesDep) -> Response:
    """503 only without the database. Without Temporal inference and reading go on, and changes wait."""
    temporal = await services.workflows.reachable()
    try:
        await services.database.aread(registry.version)
    except SQLAlchemyError as error:
        body = {"status": "down", "database": str(error)[:200], "temporal": temporal}
        return JSONResponse(body, 503)
    return JSONResponse({"status": "ok" if temporal else "degraded", "database": True, "temporal": temporal})


@router.get("/version", summary="Version of Holdfast")
async def version_() -> dict[str, str]:
    return {"name": "holdfast", "version": version("holdfast")}


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(services: ServicesDep, _admin: AdminDep) -> Response:
    counts = await services.database.aread(_counts)
    own = CollectorRegistry()
    own.register(await services.database.aread(fleet_metrics.read))
    for name, states in counts.items():
        gauge = Gauge(f"holdfast_{name}", f"Number of {name} by state", ["state"], registry=own)
        for state, count in states.items():
            gauge.labels(state).set(count)
    text = generate_latest(own) + generate_latest(services.gateway_metrics)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


class LostView(BaseModel):
    deployments: list[str]
    """Names."""
    hosts: list[str]
    """Ids."""


@v1.get("/lost", summary="What the database knows and Temporal does not")
async def lost_(services: ServicesDep, _admin: AdminDep) -> LostView:
    """Empty unless Temporal has lost data, or a person has terminated workflows: then resync."""
    deployments, hosts = await lost(services.database, services.workflows)
    return LostView(deployments=deployments, hosts=hosts)


@v1.post("/resync", summary="Begin lost workflows anew from the database")
async def resync_(services: ServicesDep, _admin: AdminDep) -> Outcome:
    """What exists is left alone, and engines go on serving. Twice is once; after a 503 do it again."""
    return await resync(services.database, services.workflows)


def _counts(session: Session) -> Counts:
    tables = {"deployments": DeploymentRow.phase, "instances": InstanceRow.state, "hosts": HostRow.state}
    return {n: dict(session.execute(select(c, func.count()).group_by(c)).all()) for n, c in tables.items()}
